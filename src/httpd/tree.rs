//! The configuration as httpd has read it: a tree of directives, with sections inside sections.
//!
//! Directives that httpd carries out while it reads (LoadModule, Include, Define, IfModule, …) are not in it.

use core::ffi::{CStr, c_char};
use std::borrow::Cow;

use super::sys;
use crate::settings::scope::Scope;

/// A directive, or the beginning of a section.
#[derive(Clone, Copy)]
pub(super) struct Directive<'t>(&'t sys::ap_directive_t);

impl<'t> Directive<'t> {
    /// Its name; that of a section begins with `<`.
    pub(super) fn name(self) -> Cow<'t, str> {
        text(self.0.directive)
    }

    /// All its arguments, as they stand in the file; those of a section end with `>`.
    pub(super) fn args(self) -> Cow<'t, str> {
        text(self.0.args)
    }

    pub(super) fn is(self, name: &str) -> bool {
        self.name().eq_ignore_ascii_case(name)
    }

    /// Where it stands. Only while the configuration is being checked: modules that make lines of their own give httpd file
    /// names that last no longer.
    pub(super) fn place(self) -> String {
        format!("line {} of {}", self.0.line_num, text(self.0.filename))
    }

    /// The line and no file.
    pub(super) fn line(self) -> i64 {
        self.0.line_num.into()
    }

    /// The section around it.
    pub(super) fn section(self) -> Option<Self> {
        // SAFETY: see `each`: the pointer is NULL or leads to another node of the tree.
        unsafe { self.0.parent.as_ref() }.map(Self)
    }

    /// What tells it from all others.
    pub(super) fn id(self) -> usize {
        core::ptr::from_ref(self.0) as usize
    }

    /// The requests that it is for.
    pub(super) fn scope(self) -> Scope {
        let mut sections = Vec::new();
        let mut next = self.section();
        while let Some(section) = next {
            sections.push(section);
            next = section.section();
        }
        let mut scope = Scope::default();
        for section in sections.iter().rev() {
            scope.within(&section.name(), &section.args(), section.id());
        }
        scope
    }
}

fn text<'t>(string: *const c_char) -> Cow<'t, str> {
    if string.is_null() {
        return Cow::Borrowed("");
    }
    // SAFETY: the strings of a live node end with NUL and live as long as the node.
    unsafe { CStr::from_ptr(string) }.to_string_lossy()
}

/// Calls `f` with each directive of the configuration, those in sections included.
pub(super) fn each(f: &mut dyn FnMut(Directive<'_>)) {
    // SAFETY: httpd builds the tree when it reads the configuration, and keeps it until it reads it anew.
    let mut node = unsafe { sys::ap_conftree }.cast_const();
    // SAFETY: as above: each pointer of a live node leads to another one, or is NULL.
    while let Some(directive) = unsafe { node.as_ref() } {
        f(Directive(directive));
        node = directive.first_child;
        let mut left = directive;
        while node.is_null() {
            node = left.next;
            // SAFETY: as above.
            match unsafe { left.parent.as_ref() } {
                Some(parent) => left = parent,
                None => break,
            }
        }
    }
}

/// Whether the configuration has one of the directives, each with its arguments if any are given.
pub(super) fn has(wanted: &[&str]) -> bool {
    let mut found = false;
    each(&mut |directive| {
        let args = directive.args();
        found |= wanted.iter().any(|wanted| {
            let (name, value) = wanted.split_once(' ').unwrap_or((wanted, &args));
            directive.is(name) && args.trim().eq_ignore_ascii_case(value.trim())
        });
    });
    found
}
