//! Adapters with weights.

use std::path::PathBuf;

/// `DIR` or `DIR:WEIGHT`: an adapter folder or file and its weight, 1 where none is given. A path with a colon that exists is a
/// path.
pub fn weighted(text: &str) -> Result<(PathBuf, f64), String> {
    let whole = PathBuf::from(text);
    if whole.exists() {
        return Ok((whole, 1.0));
    }
    let Some((dir, weight)) = text.rsplit_once(':') else {
        return match text.rsplit_once('=') {
            Some((dir, weight)) if weight.parse::<f64>().is_ok() => {
                Err(format!("there is no {text}; a weight is written behind a colon: {dir}:{weight}"))
            }
            _ => Ok((whole, 1.0)),
        };
    };
    match weight.parse::<f64>() {
        Ok(weight) if weight.is_finite() && !dir.is_empty() => Ok((dir.into(), weight)),
        _ => Err(format!("{weight:?} after the colon is not a weight, and there is no {text}")),
    }
}

/// An adapter, its weight, and the name that it has in a chat.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// Its name, where it was given one.
    pub name: Option<String>,
    /// Folder or file.
    pub dir: PathBuf,
    /// Its weight.
    pub weight: f32,
}

/// `[NAME=]DIR[:WEIGHT]`. A path with `=` that exists is a path.
pub fn named(text: &str) -> Result<Adapter, String> {
    let is_name =
        |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
    let exists = |text: &str| weighted(text).is_ok_and(|(path, _)| path.exists());
    let split = text.split_once('=').filter(|(name, rest)| {
        is_name(name) && !rest.is_empty() && rest.parse::<f64>().is_err() && !exists(text)
    });
    let (name, rest) = split.map_or((None, text), |(name, rest)| (Some(name.to_owned()), rest));
    if name.as_deref() == Some("none") {
        return Err("none is the name of the base model without an adapter: choose another".into());
    }
    let (dir, weight) = weighted_f32(rest)?;
    Ok(Adapter { name, dir, weight })
}

/// The same as [`weighted`], with a weight in f32.
pub fn weighted_f32(text: &str) -> Result<(PathBuf, f32), String> {
    let (path, weight) = weighted(text)?;
    match weight as f32 {
        small if small.is_finite() => Ok((path, small)),
        _ => Err(format!("the weight {weight} is too large")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_stand_behind_a_colon() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::create_dir(path("a:0.5")).unwrap();
        std::fs::create_dir(path("b")).unwrap();
        let parsed =
            |text: String| weighted(&text).map(|(path, weight)| (path.to_str().unwrap().to_owned(), weight));
        assert_eq!(parsed(path("b")).unwrap(), (path("b"), 1.0));
        assert_eq!(parsed(path("b:-0.7")).unwrap(), (path("b"), -0.7));
        assert_eq!(parsed(path("a:0.5")).unwrap(), (path("a:0.5"), 1.0));
        assert_eq!(parsed(path("a:0.5:2")).unwrap(), (path("a:0.5"), 2.0));
        assert_eq!(parsed(path("new")).unwrap(), (path("new"), 1.0));
        for wrong in ["b:", "b:x", "b:nan", "b:inf", "b:-inf", "b:1e999", "b:0.5x", "b:1,5"] {
            assert!(parsed(path(wrong)).unwrap_err().contains("is not a weight"), "{wrong}");
        }
        assert!(weighted(":0.5").is_err());
        assert!(parsed(path("b=0.5")).unwrap_err().contains("b:0.5"));
        assert!(weighted_f32(&path("b:1e39")).is_err());
        assert_eq!(weighted_f32(&path("b:0.5")).unwrap().1, 0.5);
    }

    #[test]
    fn names_stand_before_an_equals_sign() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::create_dir(path("x=b")).unwrap();
        let parsed = |text: &str| {
            let Adapter { name, dir, weight } = named(text).unwrap();
            (name.unwrap_or_default(), dir.to_str().unwrap().to_owned(), weight)
        };
        let want = |name: &str, dir: &str, weight| (name.to_owned(), dir.to_owned(), weight);
        assert_eq!(parsed("desk=runs/a"), want("desk", "runs/a", 1.0));
        assert_eq!(parsed("desk-2=runs/a:0.5"), want("desk-2", "runs/a", 0.5));
        assert_eq!(parsed("runs/a:0.5"), want("", "runs/a", 0.5));
        // No name has a slash, and a path that exists is a path.
        assert_eq!(parsed("runs/x=a"), want("", "runs/x=a", 1.0));
        assert_eq!(parsed(&path("x=b")), want("", &path("x=b"), 1.0));
        assert!(named("none=a").unwrap_err().contains("choose another"));
        assert!(named("b=0.5").unwrap_err().contains("b:0.5"));
    }
}
