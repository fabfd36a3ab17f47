//! `file`: the peer is looked up in files, whose names are made from what the request says.
//!
//! A file has lines of the form `<peer> <subprotocol> [<framing>] [<framing-config>]`, with single blanks between them;
//! the configuration goes to the end of the line. Each expression names a file; the first line that suits wins.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use super::{Backend, Query, address, choose};
use crate::bridge::{PeerChoice, framing};

/// The longest file name that is tried.
const LONGEST: usize = 8192;
/// As much of a file is read.
const LARGEST: u64 = 1 << 20;

/// The backend as its options describe it.
#[derive(Debug)]
pub struct File {
    /// Where relative paths of Unix sockets start.
    root: PathBuf,
    path: PathBuf,
    expressions: Vec<Expression>,
}

/// A template for file names.
#[derive(Debug)]
struct Expression {
    parts: Vec<Part>,
    /// How many of its components are "..", which only the administrator may write.
    parents: usize,
}

#[derive(Debug)]
enum Part {
    Text(String),
    /// Path and query string, without the slashes at both ends.
    Endpoint,
    /// The value of a cookie.
    Cookie(String),
    /// The value of a header.
    Header(String),
}

impl File {
    /// The options are `path`, the folder of the files (`root` if there is none), and any number of `expression`, each a
    /// file name in which `%endpoint%`, `%cookie:NAME%` and `%header:NAME%` stand for the request's.
    pub fn new(options: &[(String, String)], root: &Path) -> Result<Self, String> {
        let mut file =
            Self { root: root.to_owned(), path: root.to_owned(), expressions: Vec::new() };
        for (key, value) in options {
            match key.as_str() {
                "path" => file.path = root.join(value.strip_suffix('/').unwrap_or(value)),
                "expression" => file.expressions.push(Expression::parse(value)?),
                _ => {
                    return Err(format!(
                        "the backend file has no option '{key}': it knows path and expression"
                    ));
                }
            }
        }
        if file.expressions.is_empty() {
            return Err("the backend file needs at least one option expression, such as \
                        '%endpoint%.txt'"
                .into());
        }
        Ok(file)
    }
}

impl Backend for File {
    fn query(&self, query: &Query<'_>) -> Result<Option<PeerChoice>, String> {
        for expression in &self.expressions {
            let Some(name) = expression.expand(query) else { continue };
            // Not `join`: a name that starts with a slash is below the folder too.
            let mut path = self.path.clone().into_os_string();
            path.push("/");
            path.push(name);
            if path.len() > LONGEST {
                continue;
            }
            let Some(text) = read(Path::new(&path)) else { continue };
            let found =
                text.split(|byte| *byte == b'\n').find_map(|line| suits(line, query, &self.root));
            if let Some(line) = found {
                return line.map(Some).map_err(|e| format!("{}: {e}", Path::new(&path).display()));
            }
        }
        Ok(None)
    }

    fn doubt(&self) -> Option<String> {
        let why = match fs::metadata(&self.path) {
            Ok(found) if found.is_dir() => return None,
            Ok(_) => "is no folder".to_owned(),
            // Who looks at configtest need not be who serves.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return None,
            Err(error) => format!("cannot be used ({error})"),
        };
        Some(format!(
            "the backend file looks in {}, which {why}, so every request is refused: make that folder, or correct \
             the option path",
            self.path.display()
        ))
    }
}

/// The content of a regular file; whatever else it is, or why it cannot be read, it is passed over.
fn read(path: &Path) -> Option<Vec<u8>> {
    // Opening a FIFO would wait.
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let mut text = Vec::new();
    fs::File::open(path).ok()?.take(LARGEST).read_to_end(&mut text).ok()?;
    Some(text)
}

/// The target of a line, if it is one for this request.
fn suits(line: &[u8], query: &Query<'_>, root: &Path) -> Option<Result<PeerChoice, String>> {
    let end = line.iter().rposition(|byte| !byte.is_ascii_control())? + 1;
    let Ok(line) = core::str::from_utf8(&line[..end]) else {
        return Some(Err(
            "a line is not UTF-8; a separator can have its bytes in hexadecimal".into()
        ));
    };
    let mut words = line.splitn(4, ' ');
    let (peer, wanted) = (words.next()?, words.next()?);
    let protocol = choose(query.protocols, wanted, |offer, wanted| offer == wanted);
    if protocol.is_none() && !query.protocols.is_empty() {
        return None;
    }
    let framing = words.next().filter(|name| !name.is_empty()).unwrap_or(framing::DEFAULT);
    Some(address(peer, None, root).map(|peer| PeerChoice {
        peer,
        framing: framing.to_owned(),
        framing_config: words.next().map(str::to_owned),
        protocol,
    }))
}

impl Expression {
    fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once('%') {
            let Some((variable, behind)) = behind.split_once('%') else {
                return Err(format!("the expression '{text}' has a % without a second one"));
            };
            parts.push(Part::Text(before.to_owned()));
            parts.push(match variable.split_once(':') {
                None if variable == "endpoint" => Part::Endpoint,
                Some(("cookie", name)) if !name.is_empty() => Part::Cookie(name.to_owned()),
                Some(("header", name)) if !name.is_empty() => Part::Header(name.to_owned()),
                _ => {
                    return Err(format!(
                        "the expression '{text}' has an unknown variable %{variable}%: there are \
                         %endpoint%, %cookie:NAME% and %header:NAME%"
                    ));
                }
            });
            rest = behind;
        }
        parts.push(Part::Text(rest.to_owned()));
        // With a letter for each value: a variable beside dots does not make a "..".
        let literal: String =
            parts.iter().map(|p| if let Part::Text(text) = p { text } else { "x" }).collect();
        Ok(Self { parts, parents: parents(&literal) })
    }

    /// The file's name; `None` if the request lacks a variable, or has a value that would lead out of the folder.
    fn expand(&self, query: &Query<'_>) -> Option<String> {
        let mut name = String::new();
        for part in &self.parts {
            let value = match part {
                Part::Text(text) => {
                    name.push_str(text);
                    continue;
                }
                Part::Endpoint => {
                    let endpoint = query.endpoint.strip_prefix('/').unwrap_or(query.endpoint);
                    endpoint.strip_suffix('/').unwrap_or(endpoint)
                }
                Part::Cookie(cookie) => {
                    all(query, "Cookie").find_map(|header| find_cookie(header, cookie))?
                }
                Part::Header(header) => all(query, header).next()?,
            };
            name.push_str(&value.replace('/', "_"));
        }
        (parents(&name) == self.parents && !name.contains('\0')).then_some(name)
    }
}

/// How many components are "..".
fn parents(path: &str) -> usize {
    path.split('/').filter(|component| *component == "..").count()
}

/// The values of the headers of this name.
fn all<'a>(query: &Query<'a>, name: &str) -> impl Iterator<Item = &'a str> {
    query.headers.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| *value)
}

/// The value of a cookie (RFC 6265 §4.2.1); an empty one is none.
fn find_cookie<'a>(header: &'a str, cookie: &str) -> Option<&'a str> {
    let mut pairs = header.split(';').filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, value)| *name == cookie && !value.is_empty()).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use std::{env, process};

    use super::*;

    /// A folder of files, and a backend that looks there.
    struct Folder(PathBuf);

    impl Folder {
        fn new(test: &str, files: &[(&str, &str)]) -> Self {
            let path = env::temp_dir().join(format!("bridge-file-{}-{test}", process::id()));
            fs::create_dir_all(path.join("peers")).unwrap();
            let folder = Self(path);
            for (name, text) in files {
                fs::write(folder.0.join("peers").join(name), text).unwrap();
            }
            folder
        }

        fn backend(&self, expressions: &[&str]) -> File {
            let mut options = vec![("path".to_owned(), "peers/".to_owned())];
            options.extend(expressions.iter().map(|e| ("expression".to_owned(), (*e).to_owned())));
            File::new(&options, &self.0).unwrap()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn ask(
        file: &File,
        endpoint: &str,
        protocols: &[&str],
        headers: &[(&str, &str)],
    ) -> Option<PeerChoice> {
        file.query(&Query { endpoint, protocols, headers }).unwrap()
    }

    fn peer(file: &File, endpoint: &str, headers: &[(&str, &str)]) -> Option<String> {
        ask(file, endpoint, &[], headers).map(|target| target.peer)
    }

    #[test]
    fn variables_come_from_the_request() {
        let files = [
            ("a.txt", "tcp://a:1 *"),
            ("a_b.txt", "tcp://ab:1 *"),
            ("a?x=1.txt", "tcp://query:1 *"),
            ("s1", "tcp://s1:1 *"),
            ("h-v", "tcp://h:1 *"),
            ("default.txt", "unix:///run/d *"),
        ];
        let folder = Folder::new("variables", &files);
        let file = folder.backend(&[
            "%endpoint%.txt",
            "%cookie:session%",
            "h-%header:X-Foo%",
            "default.txt",
        ]);
        let ask = |endpoint: &str, headers: &[_]| peer(&file, endpoint, headers).unwrap();
        for endpoint in ["/a", "/a/"] {
            assert_eq!(ask(endpoint, &[]), "tcp://a:1");
        }
        assert_eq!(ask("/a/b", &[]), "tcp://ab:1");
        assert_eq!(ask("/a?x=1", &[]), "tcp://query:1");
        assert_eq!(ask("/", &[("Cookie", "session=s1")]), "tcp://s1:1");
        assert_eq!(ask("/", &[("cookie", "x=y; session=s1; session=s2")]), "tcp://s1:1");
        assert_eq!(ask("/", &[("Cookie", "x=y"), ("Cookie", "session=s1")]), "tcp://s1:1");
        assert_eq!(ask("/", &[("x-foo", "v")]), "tcp://h:1");
        for cookie in ["xsession=s1", "session=", "session", "SESSION=s1", ""] {
            assert_eq!(ask("/", &[("Cookie", cookie)]), "unix:///run/d", "{cookie}");
        }
    }

    #[test]
    fn no_value_leads_out_of_the_folder() {
        let folder = Folder::new("escape", &[("in", "tcp://in:1 *"), (".._x", "tcp://x:1 *")]);
        fs::write(folder.0.join("out"), "tcp://out:1 *").unwrap();
        let file = folder.backend(&["%endpoint%", "%header:H%/out", ".%header:D%/out"]);
        for endpoint in ["/../out", "/..%2fout", "/..", "//../out", "/in/../../out"] {
            assert_eq!(peer(&file, endpoint, &[("H", ".."), ("D", ".")]), None, "{endpoint}");
        }
        assert_eq!(peer(&file, "/../x", &[]).as_deref(), Some("tcp://x:1"));
        // What the administrator writes is the administrator's business.
        let file = folder.backend(&["../%endpoint%"]);
        assert_eq!(peer(&file, "/out", &[]).as_deref(), Some("tcp://out:1"));
    }

    #[test]
    fn the_first_line_with_an_offered_protocol_wins() {
        let files = [
            ("1", "tcp://one:1 a\ntcp://two:1 b newline lf\r\n\nnonsense\ntcp://three:1 c"),
            ("2", "tcp://four:1 d separator  a b \ntcp://five:1 e json \ntcp://any:1 *\n"),
        ];
        let folder = Folder::new("protocols", &files);
        let file = folder.backend(&["1", "missing", "2"]);
        let target = |protocols: &[&str]| ask(&file, "/", protocols, &[]).unwrap();
        let place = |target: &PeerChoice| target.peer.clone();
        // Who offers none gets the first line.
        assert_eq!((place(&target(&[])), target(&[]).protocol), ("tcp://one:1".into(), None));
        let two = target(&["x", "b"]);
        assert_eq!((place(&two), two.protocol), ("tcp://two:1".into(), Some(1)));
        assert_eq!((two.framing.as_str(), two.framing_config.as_deref()), ("newline", Some("lf")));
        // Lines, not offers, come first.
        assert_eq!(place(&target(&["c", "a"])), "tcp://one:1");
        let four = target(&["d"]);
        assert_eq!(
            (four.framing.as_str(), four.framing_config.as_deref()),
            ("separator", Some(" a b "))
        );
        let any = target(&["A", "B"]);
        assert_eq!((place(&any), any.protocol), ("tcp://any:1".into(), Some(0)));
        assert_eq!((any.framing.as_str(), any.framing_config.as_deref()), ("auto", None));
        // A blank behind the framing begins a configuration, though an empty one.
        let empty = target(&["e"]);
        assert_eq!((empty.framing.as_str(), empty.framing_config.as_deref()), ("json", Some("")));
        let file = folder.backend(&["1"]);
        assert_eq!(ask(&file, "/", &["d"], &[]), None);
    }

    #[test]
    fn what_is_no_file_is_passed_over() {
        let folder = Folder::new(
            "files",
            &[("good", "a:1 *"), ("short", "tcp://nothing-else"), ("empty", "")],
        );
        let file = folder.backend(&["%endpoint%", "short", "empty", "..", ".", "good"]);
        for endpoint in ["/", "/none", &format!("/{}", "x".repeat(LONGEST)), "/."] {
            assert_eq!(peer(&file, endpoint, &[]).as_deref(), Some("tcp://a:1"), "{endpoint}");
        }
        assert_eq!(peer(&folder.backend(&["short"]), "/", &[]), None);
        fs::write(folder.0.join("peers/latin"), b"tcp://a:1 * separator \xff").unwrap();
        let latin = folder.backend(&["latin"]);
        let error =
            latin.query(&Query { endpoint: "/", protocols: &[], headers: &[] }).unwrap_err();
        assert!(error.contains("peers/latin") && error.contains("not UTF-8"), "{error}");
    }

    #[test]
    fn a_folder_that_is_none_is_doubted() {
        let folder = Folder::new("doubt", &[("a", "tcp://a:1 *")]);
        assert_eq!(folder.backend(&["a"]).doubt(), None);
        let doubt = |path: &str| {
            let options = [("path", path), ("expression", "x")];
            let options = options.map(|(key, value)| (key.to_owned(), value.to_owned()));
            File::new(&options, &folder.0).unwrap().doubt().unwrap()
        };
        assert!(doubt("absent").contains("absent, which cannot be used (No such file"));
        assert!(doubt("peers/a").contains("peers/a, which is no folder"));
    }

    #[test]
    fn wrong_options_are_refused() {
        let refused = |key: &str, value: &str, word: &str| {
            let error = File::new(&[(key.into(), value.into())], Path::new("/")).unwrap_err();
            assert!(error.contains(word), "{error}");
        };
        refused("path", "/tmp", "at least one option expression");
        refused("file", "x", "no option 'file'");
        refused("expression", "%endpoint", "without a second one");
        for expression in ["%%", "%foo%", "%cookie:%", "%header%", "%endpoint:x%"] {
            refused("expression", expression, "unknown variable");
        }
    }
}
