/// Why a program did not come to its end: one line, and how to exit.
#[derive(Debug)]
pub struct Failure {
    /// For people.
    pub line: String,
    /// The exit code.
    pub exit: u8,
}

impl Failure {
    /// It was not asked as it should be.
    pub fn usage(line: impl ToString) -> Self {
        Self { line: line.to_string(), exit: 2 }
    }

    /// It could not be done.
    pub fn failed(line: impl ToString) -> Self {
        Self { line: line.to_string(), exit: 1 }
    }
}
