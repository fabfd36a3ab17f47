//! Which bodies are text, by their media type (RFC 9110 §8.3.1).

/// Whether a body of this type is text. What `curl -d` sends is: it says application/x-www-form-urlencoded, whatever it
/// is given. Without a type it is not.
pub fn is_text(media: &str) -> bool {
    let kind = media.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let Some((kind, subtype)) = kind.split_once('/') else { return false };
    kind == "text"
        || kind == "application" && matches!(subtype, "json" | "xml" | "x-www-form-urlencoded")
        || subtype.ends_with("+json")
        || subtype.ends_with("+xml")
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn text_and_not() {
        for text in [
            "text/plain",
            "Text/HTML; charset=utf-8",
            "application/json",
            "application/x-www-form-urlencoded",
            "application/ld+json",
            "image/svg+xml",
        ] {
            assert!(is_text(text), "{text}");
        }
        for binary in ["", "text", "application/octet-stream", "image/png", "application/jsonp"] {
            assert!(!is_text(binary), "{binary}");
        }
    }
}
