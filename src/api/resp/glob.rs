//! Redis' glob patterns: `*`, `?`, `[abc]`, `[^a-z]`, and `\` before a character that stands for itself.

/// True where `pattern` matches all of `text`. Takes time proportional to the product of both lengths at worst: only
/// the last `*` is ever gone back to.
pub(super) fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to go on after a mismatch: behind the last star, one byte of text further.
    let mut back: Option<(usize, usize)> = None;
    while t < text.len() || p < pattern.len() {
        if pattern.get(p) == Some(&b'*') {
            back = Some((p + 1, t));
            p += 1;
            continue;
        }
        let step = text.get(t).and_then(|byte| one(pattern, p, *byte));
        if let Some(next) = step {
            p = next;
            t += 1;
            continue;
        }
        match back {
            Some((star, from)) if from < text.len() => {
                back = Some((star, from + 1));
                p = star;
                t = from + 1;
            }
            _ => return false,
        }
    }
    true
}

/// Matches one byte against the element of the pattern at `p`; where the next element begins.
fn one(pattern: &[u8], p: usize, byte: u8) -> Option<usize> {
    match *pattern.get(p)? {
        b'?' => Some(p + 1),
        b'[' => {
            let (matched, next) = class(pattern, p + 1, byte);
            matched.then_some(next)
        }
        b'\\' if p + 1 < pattern.len() => (pattern.get(p + 1) == Some(&byte)).then_some(p + 2),
        literal => (literal == byte).then_some(p + 1),
    }
}

/// A class whose first element is at `p`; whether it holds `byte`, and where the next element begins. One that is
/// never closed ends with the pattern, as in Redis.
fn class(pattern: &[u8], mut p: usize, byte: u8) -> (bool, usize) {
    let negated = pattern.get(p) == Some(&b'^');
    p += usize::from(negated);
    let mut found = false;
    while let Some(&element) = pattern.get(p) {
        match element {
            b']' => return (found != negated, p + 1),
            b'\\' if p + 1 < pattern.len() => {
                found |= pattern.get(p + 1) == Some(&byte);
                p += 2;
            }
            low if pattern.get(p + 1) == Some(&b'-') && p + 2 < pattern.len() => {
                let high = pattern.get(p + 2).copied().unwrap_or(low);
                found |= (low.min(high)..=low.max(high)).contains(&byte);
                p += 3;
            }
            literal => {
                found |= literal == byte;
                p += 1;
            }
        }
    }
    (found != negated, p)
}

/// What every match begins with.
pub(super) fn literal_prefix(pattern: &[u8]) -> Vec<u8> {
    let mut prefix = Vec::new();
    let mut rest = pattern.iter();
    while let Some(&byte) = rest.next() {
        match byte {
            b'*' | b'?' | b'[' => break,
            b'\\' => prefix.push(*rest.next().unwrap_or(&b'\\')),
            literal => prefix.push(literal),
        }
    }
    prefix
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_mean_in_redis() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("*", "anything", true),
            ("", "", true),
            ("", "a", false),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h*llo", "heeeello", true),
            ("h*llo", "hllo!", false),
            ("h[ae]llo", "hallo", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-c]llo", "hbllo", true),
            ("h[c-a]llo", "hbllo", true),
            ("h[a-c]llo", "hdllo", false),
            ("a\\*c", "a*c", true),
            ("a\\*c", "abc", false),
            ("[\\]]", "]", true),
            ("[ab", "b", true),
            ("*a*b*", "xaxbx", true),
            ("*a*b", "ab_a", false),
            ("wf/*/1", "wf/a/b/1", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} on {text}");
        }
    }

    #[test]
    fn many_stars_do_not_take_forever() {
        assert!(!matches(&b"*a".repeat(50).repeat(2), &b"a".repeat(50_000)[..99]));
        let pattern = [b"*a".repeat(100), b"b".to_vec()].concat();
        assert!(!matches(&pattern, &b"a".repeat(10_000)));
    }

    #[test]
    fn the_literal_prefix_ends_at_the_first_wildcard() {
        for (pattern, prefix) in [("wf/a*", "wf/a"), ("*", ""), ("a\\*b?", "a*b"), ("plain", "plain"), ("x[y]", "x")] {
            assert_eq!(literal_prefix(pattern.as_bytes()), prefix.as_bytes());
        }
    }
}
