//! Names of the parts of a split GGUF file: `model-00002-of-00005.gguf`.

use std::path::{Path, PathBuf};

/// What the name of a part says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PartName<'a> {
    /// What comes before the numbers.
    stem: &'a str,
    /// From 1 on.
    pub number: usize,
    pub count: usize,
}

impl<'a> PartName<'a> {
    /// Reads a name; `None` for one that is not of a part.
    pub fn parse(name: &'a str) -> Option<Self> {
        let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let whole = |digits: &str| {
            let plain = digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit());
            digits.parse().ok().filter(|_| plain)
        };
        let (number, count) = (whole(number)?, whole(count)?);
        (1..=count).contains(&number).then_some(Self { stem, number, count })
    }

    /// The name of part `number`, from 1 on.
    pub fn part(&self, number: usize) -> String {
        format!("{}-{number:05}-of-{:05}.gguf", self.stem, self.count)
    }
}

/// The names of all parts of the model whose first part is called `name`, or `name` alone.
pub fn gguf_parts(name: &str) -> Vec<String> {
    match PartName::parse(name) {
        Some(first) if first.number == 1 => (1..=first.count).map(|number| first.part(number)).collect(),
        _ => vec![name.to_owned()],
    }
}

/// Where part `number` (from 1 on) of `count` lies, given another part; `None` where that is not named as a part of so
/// many.
pub(crate) fn part_beside(path: &Path, number: usize, count: usize) -> Option<PathBuf> {
    let name = PartName::parse(path.file_name()?.to_str()?)?;
    (name.count == count).then(|| path.with_file_name(name.part(number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_named_as_llama_cpp_names_them() {
        let all = gguf_parts("dir/a-b-00001-of-00003.gguf");
        assert_eq!(all, [1, 2, 3].map(|i| format!("dir/a-b-0000{i}-of-00003.gguf")));
        for alone in [
            "a.gguf",
            "a-00002-of-00003.gguf",
            "a-1-of-3.gguf",
            "a-00001-of-00000.gguf",
            "a-00001-of-+0003.gguf",
        ] {
            assert_eq!(gguf_parts(alone), [alone]);
        }
        let path = Path::new("x/m-00003-of-00003.gguf");
        assert_eq!(part_beside(path, 1, 3), Some("x/m-00001-of-00003.gguf".into()));
        assert_eq!(part_beside(path, 1, 4), None);
        assert_eq!(part_beside(Path::new("x/m.gguf"), 1, 4), None);
    }
}
