//! `/etc/group`, read by ourselves: a static program has no other way to it.

/// Who is listed in a group; `None` if there is none of that name.
pub(crate) fn members(text: &str, name: &str) -> Option<Vec<String>> {
    let list = fields(text, name)?.3;
    Some(list.split(',').map(str::trim).filter(|member| !member.is_empty()).map(str::to_owned).collect())
}

/// A group's number, by its name in `/etc/group` or as a number.
pub fn number(text: &str, name: &str) -> Option<u32> {
    name.parse().ok().or_else(|| fields(text, name)?.2.parse().ok())
}

fn fields<'a>(text: &'a str, name: &str) -> Option<(&'a str, &'a str, &'a str, &'a str)> {
    text.lines().find_map(|line| {
        let mut parts = line.splitn(4, ':');
        let row = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        (row.0 == name).then_some(row)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_and_numbers_are_found_by_the_whole_name() {
        let text = "root:x:0:\nkvmx:x:1:a\nkvm:x:105:lab, me\n\nbroken";
        assert_eq!(members(text, "kvm"), Some(vec!["lab".into(), "me".into()]));
        assert_eq!(members(text, "root"), Some(Vec::new()));
        assert_eq!(members(text, "broken"), None);
        assert_eq!(
            (number(text, "kvm"), number(text, "12"), number(text, "none")),
            (Some(105), Some(12), None)
        );
    }
}
