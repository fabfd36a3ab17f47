//! What a channel may be called.
//!
//! Names are made by expressions, of what a request has. One whose expression came to nothing must not become
//! everybody's: `user:%{REMOTE_USER}` without a user is refused, and so is each name that has an empty part.

/// How many bytes a name may have.
pub const MOST: usize = 200;

/// Says what is wrong with a name.
pub fn check(name: &str) -> Result<(), &'static str> {
    let parts = || name.split([':', '/']);
    match name {
        "" => Err("it is empty"),
        _ if name.len() > MOST => Err("it has more than 200 bytes"),
        _ if name.starts_with('@') => Err("names that begin with @ are reserved"),
        _ if name.chars().any(char::is_control) => Err("it has control characters"),
        // A name may begin with a slash, as paths do.
        _ if parts().skip(1).any(str::is_empty) || name.starts_with(':') => {
            Err("a part of it, between : or /, is empty")
        }
        _ => Ok(()),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in
            ["a", "room/kitchen", "/news", "user:jo", "Räume/Küche", "a.b-c_d", &"n".repeat(200)]
        {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "@a",
            "a:",
            "a/",
            "a::b",
            "a//b",
            "a/:b",
            ":a",
            "//a",
            "a\nb",
            "a\0",
            "a\u{85}b",
            &"n".repeat(201),
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
