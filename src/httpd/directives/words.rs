//! The words of directives: sizes, times, numbers, and a choice of a few.

use std::time::Duration;

use crate::settings;

/// What a setter says if httpd ever passed the wrong number of words.
pub(super) const ARGUMENTS: &str = "wrong number of arguments";

/// The words of a flag, which httpd has read.
pub(super) fn on(words: &[&str]) -> bool {
    words == ["On"]
}

pub(super) fn size(words: &[&str]) -> Result<usize, String> {
    let word = words.first().ok_or(ARGUMENTS)?;
    settings::size(word).ok_or_else(|| format!("'{word}' is not {}", settings::SIZE))
}

/// A time above 0, or Off.
pub(super) fn duration_or_off(words: &[&str]) -> Result<Option<Duration>, String> {
    let word = words.first().ok_or(ARGUMENTS)?;
    if word.eq_ignore_ascii_case("Off") {
        return Ok(None);
    }
    match settings::duration(word) {
        Some(time) if !time.is_zero() => Ok(Some(time)),
        _ => {
            let neither = || format!("'{word}' is neither {} nor Off", settings::DURATION);
            Err(settings::duration_advice(word).unwrap_or_else(neither))
        }
    }
}

pub(super) fn duration(words: &[&str]) -> Result<Duration, String> {
    let word = words.first().ok_or(ARGUMENTS)?;
    settings::duration(word).ok_or_else(|| {
        let expected = || format!("'{word}' is not {}", settings::DURATION);
        settings::duration_advice(word).unwrap_or_else(expected)
    })
}

/// A whole number between two bounds.
pub(super) fn number(word: Option<&&str>, low: u16, high: u16) -> Result<u16, String> {
    let word = word.ok_or(ARGUMENTS)?;
    let digits = word.bytes().all(|b| b.is_ascii_digit());
    let number = word.parse().ok().filter(|n| digits && (low..=high).contains(n));
    number.ok_or_else(|| format!("'{word}' is not a number from {low} to {high}"))
}

/// One of a directive's words, upper and lower case being the same.
pub(super) fn choice<T: Copy>(words: &[&str], choices: &[(&str, T)]) -> Result<T, String> {
    let word = words.first().ok_or(ARGUMENTS)?;
    let chosen = choices.iter().find(|(name, _)| name.eq_ignore_ascii_case(word));
    chosen.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        format!("'{word}' is none of {}", names.join(", "))
    })
}
