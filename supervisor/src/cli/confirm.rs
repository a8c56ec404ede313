//! Asking before a change. Only where someone can answer; elsewhere `-y` must say it. Never hangs.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use super::{
    args::Change,
    exit::{Exit, Failure},
};

/// Shows the targets and asks whether to go on, unless `-y` was given.
///
/// # Errors
/// Nobody can be asked, or the answer is no: refused (2).
pub(crate) async fn confirm(change: &Change, action: &str, targets: &[String]) -> Result<(), Failure> {
    if change.yes {
        return Ok(());
    }
    let what = format!("{action} {}", targets.join(", "));
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return Err(Failure::usage(format!(
            "will not {what} without asking, and no terminal is here: pass -y"
        )));
    }
    // The thread may outlive us, waiting for a key: the runtime is shut down without waiting for it.
    let answer = tokio::task::spawn_blocking(move || ask(&what)).await;
    match answer {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => Err(Failure::usage("refused; nothing was changed")),
        Ok(Err(e)) => Err(Failure::new(Exit::Failed, format!("cannot ask: {e}"))),
        Err(e) => Err(Failure::new(Exit::Failed, format!("cannot ask: {e}"))),
    }
}

fn ask(what: &str) -> io::Result<bool> {
    // No lock is kept while waiting: an interruption must still be told.
    write!(io::stderr(), "{what}\nGo on? [y/N] ")?;
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
