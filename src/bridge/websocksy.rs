//! websocksy's configuration files: sections `[core]` and `[backend]` of `key = value` lines.
//!
//! There are no comments: a line without a `=` is passed over, and one with it is an option whatever it starts with.

/// What a file says.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Config {
    /// `ping`: seconds of silence after which a client is pinged; 0 for never.
    pub ping: Option<u32>,
    /// `backend`: the name of an external backend, and the line that says so.
    pub backend: Option<String>,
    /// The options of the backend, in their order.
    pub options: Vec<(String, String)>,
    /// What the file says that has no effect here: sentences with the line's number.
    pub warnings: Vec<String>,
}

/// Reads a file's text; an error is a sentence with the line's number.
pub fn parse(text: &str) -> Result<Config, String> {
    let mut config = Config::default();
    let mut in_backend = false;
    for (number, line) in (1..).zip(text.lines()) {
        if let Some(section) = line.strip_prefix('[') {
            in_backend = match section.trim_end() {
                "core]" => false,
                "backend]" => true,
                _ => {
                    return Err(format!(
                        "line {number}: there is no section '{}'",
                        line.trim_end()
                    ));
                }
            };
            continue;
        }
        let Some((key, value)) = line.split_once('=') else { continue };
        let (key, value) = (key.trim(), value.trim());
        if in_backend {
            config.options.push((key.to_owned(), value.to_owned()));
            continue;
        }
        match key {
            "port" | "listen" => config.warnings.push(format!(
                "line {number}: '{key}' has no effect: where connections come in is httpd's Listen"
            )),
            "ping" => {
                let seconds = value.parse().map_err(|_| {
                    format!("line {number}: ping is a number of seconds, not '{value}'")
                })?;
                config.ping = Some(seconds);
            }
            "backend" => {
                // A backend starts without options, and there is only one.
                if config.backend.is_some() || !config.options.is_empty() {
                    config.options.clear();
                    config.warnings.push(format!(
                        "line {number}: the backend '{value}' replaces the one before it, with its options"
                    ));
                }
                config.backend = Some(value.to_owned());
            }
            _ => config.warnings.push(format!("line {number}: '{key}' is no option of [core]")),
        }
    }
    Ok(config)
}

/// The backend that a name stands for: `defaultpeer` and `file` are built in, a path is itself, and any other name is a
/// library `backend_<name>.so` in the folder `plugins`.
pub fn backend(name: Option<&str>, plugins: &str) -> String {
    match name {
        None => "defaultpeer".to_owned(),
        Some(name @ ("defaultpeer" | "file")) => name.to_owned(),
        Some(path) if path.contains('/') => path.to_owned(),
        Some(name) => format!("{}/backend_{name}.so", plugins.trim_end_matches('/')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(options: &[(&str, &str)]) -> Vec<(String, String)> {
        options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn sections_hold_pairs() {
        let text = "[core]\nport = 8000\n backend=file \r\nping = 12\n\nno pair\n\
                    [backend]\npath = files/\nexpression = %endpoint%=a b.txt\n#x = y\nexpression=\n[core]\nlisten = ::1\n";
        let config = parse(text).unwrap();
        assert_eq!(config.ping, Some(12));
        assert_eq!(config.backend.as_deref(), Some("file"));
        let options = [
            ("path", "files/"),
            ("expression", "%endpoint%=a b.txt"),
            ("#x", "y"),
            ("expression", ""),
        ];
        assert_eq!(config.options, pairs(&options));
        assert_eq!(config.warnings.len(), 2);
        assert!(config.warnings[0].contains("line 2: 'port' has no effect"));
        assert!(config.warnings[1].contains("line 13: 'listen' has no effect"));
    }

    #[test]
    fn the_first_section_is_core_and_the_default_backend_needs_no_name() {
        let config = parse("ping = 0\n[backend]\nhost = tcp://h:1\n").unwrap();
        assert_eq!((config.ping, config.backend), (Some(0), None));
        assert_eq!(config.options, pairs(&[("host", "tcp://h:1")]));
        assert_eq!(parse("").unwrap(), Config::default());
    }

    #[test]
    fn a_second_backend_starts_anew() {
        let config =
            parse("backend = a\n[backend]\nx = 1\n[core]\nbackend = b\n[backend]\ny = 2\n")
                .unwrap();
        assert_eq!(config.backend.as_deref(), Some("b"));
        assert_eq!(config.options, pairs(&[("y", "2")]));
        assert!(config.warnings[0].contains("line 5: the backend 'b' replaces"));
    }

    #[test]
    fn mistakes_name_their_line() {
        assert!(parse("\nping = soon").unwrap_err().contains("line 2: ping is a number"));
        assert!(parse("[cor]").unwrap_err().contains("line 1: there is no section '[cor]'"));
        assert!(parse("x = 1").unwrap().warnings[0].contains("line 1: 'x' is no option"));
    }

    #[test]
    fn names_stand_for_backends() {
        assert_eq!(backend(None, "p"), "defaultpeer");
        assert_eq!(backend(Some("file"), "p"), "file");
        assert_eq!(backend(Some("db"), "p"), "p/backend_db.so");
        assert_eq!(backend(Some("db"), "/usr/lib/p/"), "/usr/lib/p/backend_db.so");
        assert_eq!(backend(Some("./db.so"), "p"), "./db.so");
    }
}
