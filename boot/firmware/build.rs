//! Linker arguments of the ROM: one static image, no libc, no start files.

fn main() {
    println!("cargo::rerun-if-changed=../../linker/firmware.ld");
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
        "-Wl,--gc-sections",
        &format!("-Wl,-T,{}/../../linker/firmware.ld", env!("CARGO_MANIFEST_DIR")),
    ] {
        println!("cargo::rustc-link-arg-bin=firmware={argument}");
    }
}
