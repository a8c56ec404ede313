//! The one binary `wardkeep`: reads the command line, wires, and ends with the right exit code.

use std::process::ExitCode;

use wardkeep::{
    cli::{
        self, Exit,
        args::{Command, LogArgs, Serve},
    },
    serve,
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
    let json = cli.global.output.is_json();
    let exit = match cli.command {
        Command::Serve(serve) => runtime.block_on(serve_daemon(serve, cli.log, json)),
        _ => runtime.block_on(cli::run(cli)),
    };
    // A question nobody answered must not keep an interrupted command alive.
    runtime.shutdown_background();
    exit.into()
}

async fn serve_daemon(serve: Serve, log: LogArgs, json: bool) -> Exit {
    let ended = match serve {
        Serve::Supervisor(args) => serve::supervisor(args, &log).await,
        Serve::Node(args) => serve::node(args, &log).await,
    };
    match ended {
        Ok(()) => Exit::Ok,
        Err(error) => cli::fail(serve::failure(error), json),
    }
}
