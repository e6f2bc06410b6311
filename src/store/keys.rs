//! The canonical key layout, `<kind>/<namespace>/<rest>`, and the bounds of a prefix.

/// The kinds of key that name their own namespace.
pub const CANONICAL_KINDS: [&str; 10] = ["ns", "wf", "wfh", "sc", "bt", "dp", "nx", "id", "sa", "idem"];

/// The kinds whose bare `kind/` prefix lists every shard of the org.
pub const CROSS_NAMESPACE_KINDS: [&str; 2] = ["ns", "nx"];

/// Splits a key into kind, namespace and rest at its first two slashes. None without a slash or with a leading one;
/// the rest is empty where there is no second slash (`wf/x` gives namespace `x`).
#[must_use]
pub fn ns_from_key(key: &str) -> Option<(&str, &str, &str)> {
    let (kind, tail) = key.split_once('/')?;
    if kind.is_empty() {
        return None;
    }
    let (namespace, rest) = tail.split_once('/').unwrap_or((tail, ""));
    Some((kind, namespace, rest))
}

/// Splits a list prefix into kind, namespace and suffix; what is missing is empty.
#[must_use]
pub fn split_prefix(prefix: &str) -> (&str, &str, &str) {
    let (kind, tail) = prefix.split_once('/').unwrap_or((prefix, ""));
    let (namespace, suffix) = tail.split_once('/').unwrap_or((tail, ""));
    (kind, namespace, suffix)
}

/// Whether a list of this prefix covers every shard of the org: a bare `kind/` of [`CROSS_NAMESPACE_KINDS`].
#[must_use]
pub fn is_cross_namespace_prefix(prefix: &str) -> bool {
    prefix.strip_suffix('/').is_some_and(|kind| CROSS_NAMESPACE_KINDS.contains(&kind))
}

/// The first text after every text that begins with `prefix`, in the order of bytes; none where there is no such text.
/// UTF-8 orders as code points do, so the last character that has a successor is replaced by it.
pub(super) fn prefix_end(prefix: &str) -> Option<String> {
    let mut head = prefix.to_owned();
    while let Some(last) = head.pop() {
        let after_gap = if last == '\u{d7ff}' { Some('\u{e000}') } else { char::from_u32(u32::from(last) + 1) };
        if let Some(next) = after_gap {
            head.push(next);
            return Some(head);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_name_their_namespace() {
        assert_eq!(ns_from_key("ns/foo"), Some(("ns", "foo", "")));
        assert_eq!(ns_from_key("sc/sched/abc"), Some(("sc", "sched", "abc")));
        assert_eq!(ns_from_key("wf/x"), Some(("wf", "x", "")));
        assert_eq!(ns_from_key("wfh/ns/wf/run/1"), Some(("wfh", "ns", "wf/run/1")));
        for none in ["", "plain", "/leading", "/"] {
            assert_eq!(ns_from_key(none), None, "{none:?}");
        }
    }

    #[test]
    fn prefixes_split_and_some_cross_namespaces() {
        assert_eq!(split_prefix("wf/pay/a"), ("wf", "pay", "a"));
        assert_eq!(split_prefix("wf/pay/"), ("wf", "pay", ""));
        assert_eq!(split_prefix("ns/"), ("ns", "", ""));
        assert_eq!(split_prefix("ns"), ("ns", "", ""));
        assert!(is_cross_namespace_prefix("ns/") && is_cross_namespace_prefix("nx/"));
        for single in ["", "ns", "wf/", "ns/a", "ns//", "/"] {
            assert!(!is_cross_namespace_prefix(single), "{single:?}");
        }
    }

    #[test]
    fn a_prefix_ends_where_its_last_character_rises() {
        assert_eq!(prefix_end("a").as_deref(), Some("b"));
        assert_eq!(prefix_end("a\u{7f}").as_deref(), Some("a\u{80}"));
        assert_eq!(prefix_end("\u{d7ff}").as_deref(), Some("\u{e000}"));
        assert_eq!(prefix_end("a\u{10ffff}\u{10ffff}").as_deref(), Some("b"));
        assert_eq!(prefix_end("\u{10ffff}"), None);
        assert_eq!(prefix_end(""), None);
    }

    proptest! {
        #[test]
        fn the_end_divides_exactly(prefix in "\\PC{0,3}|[\u{10fffe}\u{10ffff}\u{d7ff}\u{e000}az]{0,3}", key in "\\PC{0,5}", under: bool) {
            let key = if under { format!("{prefix}{key}") } else { key };
            let inside = key.as_str() >= prefix.as_str() && prefix_end(&prefix).is_none_or(|end| key < end);
            prop_assert_eq!(inside, key.starts_with(&prefix));
        }
    }
}
