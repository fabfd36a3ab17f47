//! The copy of the request's headers that a connection keeps for its plugin.
//!
//! It outlives the request and may be read from any thread. All of it lies in one block of memory.

use core::ffi::CStr;

/// The most bytes of header fields that are kept: names, values and a byte behind each.
const BOUND: usize = 64 * 1024;

/// Header fields, each as its name and its value with a NUL behind both.
#[derive(Debug, Default)]
pub struct Headers(Box<[u8]>);

impl Headers {
    /// Copies `fields` as long as they fit, and says how many did not.
    pub fn copy<'f>(fields: impl Iterator<Item = (&'f CStr, &'f CStr)>) -> (Self, usize) {
        let mut bytes = Vec::new();
        let mut left_out = 0;
        for (name, value) in fields {
            let (name, value) = (name.to_bytes_with_nul(), value.to_bytes_with_nul());
            if bytes.len() + name.len() + value.len() > BOUND {
                left_out += 1;
                continue;
            }
            bytes.extend_from_slice(name);
            bytes.extend_from_slice(value);
        }
        (Self(bytes.into()), left_out)
    }

    /// All fields: their names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&CStr, &CStr)> {
        let mut rest = &*self.0;
        core::iter::from_fn(move || {
            let (field, value);
            (field, rest) = string(rest)?;
            (value, rest) = string(rest)?;
            Some((field, value))
        })
    }

    /// The value of a field; upper and lower case in `name` are the same.
    pub fn get(&self, name: &CStr) -> Option<&CStr> {
        let same = |field: &CStr| field.to_bytes().eq_ignore_ascii_case(name.to_bytes());
        self.iter().find(|(field, _)| same(field)).map(|(_, value)| value)
    }
}

/// The string at the front of `bytes`, and what follows it.
fn string(bytes: &[u8]) -> Option<(&CStr, &[u8])> {
    let string = CStr::from_bytes_until_nul(bytes).ok()?;
    Some((string, &bytes[string.to_bytes_with_nul().len()..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_without_regard_to_case() {
        let fields = [(c"Host", c"a.example"), (c"X-Empty", c""), (c"Cookie", c"a=b; c=d")];
        let (headers, left_out) = Headers::copy(fields.into_iter());
        assert_eq!(left_out, 0);
        assert_eq!(headers.get(c"HOST"), Some(c"a.example"));
        assert_eq!(headers.get(c"x-empty"), Some(c""));
        assert_eq!(headers.get(c"cookie"), Some(c"a=b; c=d"));
        assert_eq!(headers.get(c"Hos"), None);
        assert_eq!(headers.get(c""), None);
    }

    #[test]
    fn what_exceeds_the_bound_is_left_out() {
        let long = std::ffi::CString::new(vec![b'x'; 40_000]).unwrap();
        let fields = [(c"A", &*long), (c"B", &*long), (c"C", c"short")];
        let (headers, left_out) = Headers::copy(fields.into_iter());
        assert_eq!(left_out, 1);
        assert!(headers.get(c"A").is_some());
        assert_eq!(headers.get(c"B"), None);
        assert_eq!(headers.get(c"C"), Some(c"short"));
    }
}
