//! Writes the files of the packages that the daemon's own tables make: manual pages, completions, and
//! `/etc/default/retry-endpoint`. `cargo xtask dist` runs it with the directory to write to.

use std::{env, fs, io, path::Path};

use clap::Command;
use clap_complete::Shell;
use retry_userspace::parts::{command_lines, settings};

/// The section of the manual: programs of the administrator.
const SECTION: &str = "8";

fn main() -> io::Result<()> {
    let directory = env::args_os().nth(1).ok_or_else(|| io::Error::other("which directory?"))?;
    let directory = Path::new(&directory);
    let commands = command_lines();
    manual(&directory.join("man"), &commands)?;
    completions(&directory.join("completions"), &commands)?;
    fs::write(directory.join("default"), settings::default_file())
}

/// A page per command line.
fn manual(directory: &Path, commands: &[Command]) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    for command in commands {
        let name = command.get_name().replace(' ', "-");
        let mut page = Vec::new();
        // clap has no date, and the same commit is to make the same page.
        clap_mangen::Man::new(command.clone()).title(name.clone()).section(SECTION).render(&mut page)?;
        // Our documents have one dash.
        let page = String::from_utf8(page).map_err(io::Error::other)?.replace(r"\-\-", r"\-");
        // `whatis` and `apropos` know a verb's page by one word.
        let [as_typed, as_one] = [command.get_name(), &name].map(|name| format!("\n{} \\- ", name.replace('-', r"\-")));
        let page = page.replacen(&as_typed, &as_one, 1);
        fs::write(directory.join(format!("{name}.{SECTION}")), page)?;
    }
    Ok(())
}

/// A file per shell, with the verbs as subcommands.
fn completions(directory: &Path, commands: &[Command]) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let [daemon, verbs @ ..] = commands else { return Err(io::Error::other("there is no command line")) };
    let verbs = verbs.iter().map(|verb| {
        let word = verb.get_name().rsplit(' ').next().unwrap_or_default().to_owned();
        verb.clone().name(word)
    });
    let whole = daemon.clone().subcommands(verbs);
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut whole.clone(), "retry-endpoint", directory)?;
    }
    Ok(())
}
