//! The one binary `wardkeep`: reads the command line, wires, and ends with the right exit code.

use std::process::ExitCode;

use wardkeep::cli::{
    self, Exit,
    args::{Command, Serve},
};

fn main() -> ExitCode {
    let cli = match cli::read() {
        Ok(cli) => cli,
        Err(exit) => return exit.into(),
    };
    let serves = matches!(cli.command, Command::Serve(_));
    let mut builder = if serves {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("wardkeep: cannot start: {e}");
            return Exit::Failed.into();
        }
    };
    let exit = match cli.command {
        Command::Serve(serve) => runtime.block_on(serve_daemon(serve)),
        _ => runtime.block_on(cli::run(cli)),
    };
    // A question nobody answered must not keep an interrupted command alive.
    runtime.shutdown_background();
    exit.into()
}

async fn serve_daemon(serve: Serve) -> Exit {
    let what = match serve {
        Serve::Supervisor(_) => "serve supervisor",
        Serve::Node(_) => "serve node",
    };
    eprintln!("wardkeep: `{what}` is not part of this build");
    Exit::Failed
}
