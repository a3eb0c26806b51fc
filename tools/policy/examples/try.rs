use parma_policy::*;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let text = std::fs::read_to_string(&args[1]).unwrap();
    let start = std::time::Instant::now();
    match compile(&Inputs::policy(&args[1], &text)) {
        Ok(c) => {
            eprintln!("{} -> {} bytes in {:?}", text.len(), c.image.len(), start.elapsed());
            for w in &c.warnings {
                eprintln!("warning: {w}");
            }
            if args.len() > 2 {
                println!("{}", disassemble(&c.image).unwrap());
            }
        }
        Err(e) => eprintln!("ERROR {e}"),
    }
}
