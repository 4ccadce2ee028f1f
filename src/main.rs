//! `edge-infer`: classify pictures with an int8 ONNX ResNet, and look into what runs.
#![forbid(unsafe_code)]

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
