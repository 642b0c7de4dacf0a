//! What a POSIX shell is to `eval`.

use throughline_brokers::Export;

/// `export NAME='value'`.
pub(crate) fn export((name, value): &Export) -> String {
    format!("export {name}={}", quoted(value))
}

/// In single quotes nothing has a meaning but the quote itself.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_shell_reads_back_what_was_meant() {
        for value in ["amqp://g:g@127.0.0.1:1/%2f", "it's $HOME `id` \"x\" \\ ; & \n end", "", "'"] {
            let line = export(&("VALUE".to_owned(), value.to_owned()));
            let script = format!("{line}; printf %s \"$VALUE\"");
            let output = Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), value);
        }
    }
}
