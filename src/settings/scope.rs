//! Which requests a section of the configuration is for, as far as that can be told before there are any.
//!
//! Two sections *may meet* if there can be a request that both are for. Where that cannot be told (a pattern, a
//! folder and a path of URLs) they may: warnings that rest on this have no false alarms, and miss some mistakes.
#![forbid(unsafe_code)]

/// The requests that a directive holds for, by the sections around it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Scope {
    /// The virtual host around it, by any number that tells one from the other; none is the main server, whose
    /// sections are for all of them.
    host: Option<usize>,
    place: Place,
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
enum Place {
    /// Nothing is known that would leave a request out.
    #[default]
    Anywhere,
    /// `<Location>` and `<LocationMatch>`.
    Urls(Start),
    /// `<Directory>` and `<DirectoryMatch>`.
    Folders(Start),
}

/// What all paths that a section is for begin with.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Start {
    text: String,
    /// It is a path, for which the section is and for all below it. Otherwise there is a pattern behind the text.
    is_path: bool,
}

impl Scope {
    /// Narrows the scope down to a section: `name` and `args` as httpd has them (`<Location`, `"/echo">`), `id` what
    /// tells virtual hosts apart.
    pub fn within(&mut self, name: &str, args: &str, id: usize) {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        if is("<VirtualHost") {
            self.host = Some(id);
        } else if is("<Location") || is("<LocationMatch") {
            self.place = start(args, is("<LocationMatch")).map_or(Place::Anywhere, Place::Urls);
        } else if is("<Directory") || is("<DirectoryMatch") {
            let start = start(args, is("<DirectoryMatch"));
            self.place = start.map_or(Place::Anywhere, |start| Place::Folders(start.in_files()));
        }
    }

    /// Whether there may be a request that both are for.
    pub fn may_meet(&self, other: &Self) -> bool {
        let hosts = self.host.is_none() || other.host.is_none() || self.host == other.host;
        let places = match (&self.place, &other.place) {
            (Place::Urls(a), Place::Urls(b)) | (Place::Folders(a), Place::Folders(b)) => {
                a.covers(b) || b.covers(a)
            }
            _ => true,
        };
        hosts && places
    }
}

impl Start {
    /// The same as a path of files, which httpd writes without `//`, `.` and `..`.
    fn in_files(mut self) -> Self {
        if !self.is_path && !self.text.ends_with('/') {
            // What follows may belong to the last name.
            return self;
        }
        let mut names = Vec::new();
        for name in self.text.split('/') {
            match name {
                "" | "." => {}
                ".." => drop(names.pop()),
                name => names.push(name),
            }
        }
        let end = if names.is_empty() || !self.text.ends_with('/') { "" } else { "/" };
        self.text = format!("/{}{end}", names.join("/"));
        self
    }

    fn covers(&self, other: &Self) -> bool {
        let Some(rest) = other.text.strip_prefix(self.text.as_str()) else { return false };
        let ends = self.text.ends_with('/') || rest.is_empty() || rest.starts_with('/');
        ends || !self.is_path
    }
}

/// What stands between a section's name and its end; none if it begins with no path.
fn start(args: &str, is_regex: bool) -> Option<Start> {
    let args = args.trim();
    let args = args.strip_suffix('>').unwrap_or(args).trim();
    let (args, is_regex) = match args.strip_prefix('~') {
        Some(rest) => (rest.trim(), true),
        None => (args, is_regex),
    };
    let word = match args.chars().next()? {
        quote @ ('"' | '\'') => args.split(quote).nth(1)?,
        _ => args.split_whitespace().next()?,
    };
    let start = if is_regex {
        let text = literal(word);
        Start { text: text.to_owned(), is_path: false }
    } else {
        let pattern = word.find(['*', '?', '[']);
        let text = &word[..pattern.unwrap_or(word.len())];
        Start { text: text.to_owned(), is_path: pattern.is_none() }
    };
    (start.text.is_empty() || start.text.starts_with('/')).then_some(start)
}

/// What all texts that a regular expression matches begin with, or some of it.
fn literal(regex: &str) -> &str {
    let Some(rest) = regex.strip_prefix('^') else { return "" };
    // An alternative outside of parentheses is one to the whole.
    let mut depth = 0;
    let mut chars = rest.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => drop(chars.next()),
            '(' => depth += 1,
            ')' => depth -= 1,
            '|' if depth <= 0 => return "",
            _ => {}
        }
    }
    let special = |c: char| "\\.[](){}*+?|^$".contains(c);
    let text = &rest[..rest.find(special).unwrap_or(rest.len())];
    // What may be left out is no part of it.
    match rest[text.len()..].chars().next() {
        Some('*' | '?' | '{') => &text[..text.char_indices().last().map_or(0, |(at, _)| at)],
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(sections: &[(&str, &str)]) -> Scope {
        let mut scope = Scope::default();
        for (name, args) in sections {
            // A virtual host is told by its length here.
            scope.within(name, args, args.len());
        }
        scope
    }

    #[test]
    fn sections_of_urls() {
        for (a, b, expected) in [
            ("/ws>", "/ws>", true),
            ("/ws>", "\"/ws\">", true),
            ("/ws>", "'/ws/'>", true),
            ("/ws>", "/ws/chat>", true),
            ("/ws>", "/>", true),
            ("/ws>", "/wss>", false),
            ("/ws>", "/chat>", false),
            ("/ws>", "/w*>", true),
            ("/ws>", "/c*>", false),
            ("/ws>", "/w?>", true),
            ("/ws>", "~ \"^/w\">", true),
            ("/ws>", "~ \"^/c\">", false),
            ("/ws>", "~ \"ws\">", true),
            ("/ws>", "~ \"^/chat|^/ws\">", true),
            ("/ws>", "~ \"^/(chat|ws)\">", true),
            ("/ws>", "~ \"^/chat\\(|^/ws\">", true),
            ("/ws>", "~ \"^/chat/(a|b)\">", false),
            ("/ws>", "~ \"^/wsx?$\">", true),
            ("/ws>", "~ \"^/wsx*$\">", true),
            ("/ws>", "~ \"^/wsx{0,2}$\">", true),
            ("/ws>", "~ \"^/wsx+$\">", false),
            ("/ws>", "~ \"^/w\\.s\">", true),
            ("/ws>", "ws>", true),
            ("/ws>", ">", true),
        ] {
            let (a, b) = (scope(&[("<Location", a)]), scope(&[("<location", b)]));
            assert_eq!(a.may_meet(&b), expected, "{a:?} {b:?}");
            assert_eq!(b.may_meet(&a), expected, "{a:?} {b:?}");
            assert!(a.may_meet(&Scope::default()) && Scope::default().may_meet(&a));
        }
        let pattern = scope(&[("<LocationMatch", "^/vnc/(?<port>59\\d\\d)$>")]);
        assert!(!pattern.may_meet(&scope(&[("<Location", "/echo>")])));
        assert!(pattern.may_meet(&scope(&[("<Location", "/vnc>")])));
    }

    #[test]
    fn what_cannot_be_told_may_meet() {
        let urls = scope(&[("<Location", "/ws>")]);
        let folders = scope(&[("<Directory", "/srv/a>")]);
        assert!(urls.may_meet(&folders));
        assert!(!folders.may_meet(&scope(&[("<Directory", "/srv/b>")])));
        for (a, b) in
            [("/srv//a/>", "/srv/a>"), ("/srv/x/../a>", "\"/srv/./a\">"), ("//>", "/srv>")]
        {
            assert!(scope(&[("<Directory", a)]).may_meet(&scope(&[("<Directory", b)])), "{a} {b}");
        }
        // A path of URLs is as it is written.
        let (twice, once) = (scope(&[("<Location", "/a//b>")]), scope(&[("<Location", "/a/b>")]));
        assert!(!twice.may_meet(&once));
        for (name, args) in [("<Files", "*.ws>"), ("<If", "true>"), ("<Proxy", "*>")] {
            assert!(urls.may_meet(&scope(&[(name, args)])), "{name}");
        }
    }

    #[test]
    fn what_is_within_narrows_down() {
        let file = scope(&[("<Directory", "/srv/a>"), ("<Files", "x>"), ("<If", "true>")]);
        assert!(!file.may_meet(&scope(&[("<Directory", "/srv/b>")])));
    }

    #[test]
    fn virtual_hosts_do_not_meet_each_other() {
        let a = scope(&[("<VirtualHost", "a>"), ("<Location", "/ws>")]);
        let b = scope(&[("<VirtualHost", "bb>"), ("<Location", "/ws>")]);
        assert!(a.may_meet(&a) && !a.may_meet(&b));
        assert!(a.may_meet(&scope(&[("<Location", "/ws>")])));
        assert!(a.may_meet(&scope(&[("<VirtualHost", "a>")])));
        assert!(!a.may_meet(&scope(&[("<VirtualHost", "bb>")])));
    }
}
