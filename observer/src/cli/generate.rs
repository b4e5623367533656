//! `observer completions SHELL` and `observer man`: from the same definition as the help; and the page of signals.

use super::{Cli, NOTHING};
use clap::CommandFactory;
use std::io::Write;

/// Print completions for a shell.
#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: clap_complete::Shell,
}

pub(super) fn completions(args: &CompletionsArgs) -> anyhow::Result<u8> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "observer", &mut text);
    print(&text)
}

pub(super) fn man() -> anyhow::Result<u8> {
    let mut text = Vec::new();
    let command = Cli::command();
    clap_mangen::Man::new(command.clone()).render(&mut text)?;
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let name = format!("observer {}", sub.get_name());
        clap_mangen::Man::new(sub.clone().name(name)).render(&mut text)?;
    }
    print(&text)
}

/// For `cargo xtask signals`.
pub(super) fn signals() -> anyhow::Result<u8> {
    print(crate::export::document::page().as_bytes())
}

fn print(text: &[u8]) -> anyhow::Result<u8> {
    let mut out = std::io::stdout().lock();
    out.write_all(text)?;
    out.flush()?;
    Ok(NOTHING)
}
