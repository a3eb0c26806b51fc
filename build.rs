//! Linker arguments of the init: one static file, no interpreter, no libc, no start files.

fn main() {
    println!("cargo::rerun-if-changed=linker/init.ld");
    println!("cargo::rerun-if-changed=build.rs");
    // Cargo passes link arguments of a binary that is not built to nobody, so no feature needs to be asked for.
    for argument in [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id=none",
        "-Wl,-z,norelro",
        "-Wl,-z,noexecstack",
        "-Wl,-z,max-page-size=4096",
        &format!("-Wl,-T,{}/linker/init.ld", env!("CARGO_MANIFEST_DIR")),
    ] {
        println!("cargo::rustc-link-arg-bin=init={argument}");
    }
}
