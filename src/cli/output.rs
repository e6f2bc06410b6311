//! What goes to the terminal, or to whoever reads instead of one.

use std::io::{self, IsTerminal as _, Write as _};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// Colours, by what they mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Good,
    Odd,
    Bad,
    Strong,
}

/// Wraps `text` in `tone`, where colours are wanted.
pub(super) fn paint(text: &str, tone: Tone, colours: bool) -> String {
    let code = match tone {
        _ if !colours => return text.to_owned(),
        Tone::Plain => return text.to_owned(),
        Tone::Good => "32",
        Tone::Odd => "33",
        Tone::Bad => "31",
        Tone::Strong => "1",
    };
    format!("\u{1b}[{code}m{text}\u{1b}[0m")
}

/// True where standard output is a terminal and nobody asked for no colours (<https://no-color.org>).
pub(super) fn colours() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A table as text, each row in its tone. Columns whose head starts with `>` are set flush right.
pub(super) fn table(heads: &[&str], rows: &[(Vec<String>, Tone)], colours: bool) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(heads.iter().map(|head| head.trim_start_matches('>')));
    for (index, head) in heads.iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, 2));
            if head.starts_with('>') {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    // Cells are names, numbers and one-line reasons, so each row is one line and a line takes its row's tone.
    table.add_rows(rows.iter().map(|(cells, _)| cells.iter().map(|cell| cell.replace('\n', " "))));
    let tones = std::iter::once(Tone::Strong).chain(rows.iter().map(|(_, tone)| *tone));
    let lines = table.lines().zip(tones).map(|(line, tone)| paint(line.trim_end(), tone, colours) + "\n");
    lines.collect()
}

/// Writes to standard output at once.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// A line on standard error; where even that is closed there is nobody to tell.
pub(super) fn complain(message: &str) {
    let _ = writeln!(io::stderr(), "outrigger: {message}");
}

/// 1234567 as `1.2 MiB`.
pub(super) fn bytes(count: u64) -> String {
    bytesize::ByteSize::b(count).display().iec().to_string()
}

/// Microseconds as milliseconds.
pub(super) fn milliseconds(micros: f64) -> String {
    let millis = micros / 1000.0;
    if millis.abs() < 10.0 { format!("{millis:.2} ms") } else { format!("{millis:.0} ms") }
}

/// One word of a shell's command line, quoted where it has to be.
pub(super) fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:=@%,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up_and_colour_whole_rows() {
        let rows = [(vec!["a".into(), "7".into()], Tone::Plain), (vec!["bbb".into(), "123".into()], Tone::Bad)];
        assert_eq!(table(&["NAME", ">N"], &rows, false), "NAME    N\na       7\nbbb   123\n");
        assert!(table(&["NAME", ">N"], &rows, true).ends_with("\u{1b}[31mbbb   123\u{1b}[0m\n"));
    }

    #[test]
    fn shell_words_survive_a_shell() {
        assert_eq!(shell_word("/a/b-c.sock"), "/a/b-c.sock");
        assert_eq!(shell_word("a b"), "'a b'");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
        assert_eq!(shell_word(""), "''");
    }
}
