//! Text as HTML: escaped, with the indices and exponents of formulas set as such.

/// Letters that stand below or above the line, what they are letters of, and the element that sets them.
const RAISED: [(char, char, &str); 33] = [
    ('₀', '0', "sub"),
    ('₁', '1', "sub"),
    ('₂', '2', "sub"),
    ('₃', '3', "sub"),
    ('₄', '4', "sub"),
    ('₅', '5', "sub"),
    ('₆', '6', "sub"),
    ('₇', '7', "sub"),
    ('₈', '8', "sub"),
    ('₉', '9', "sub"),
    ('ᵢ', 'i', "sub"),
    ('ⱼ', 'j', "sub"),
    ('ᵣ', 'r', "sub"),
    ('ₖ', 'k', "sub"),
    ('ₙ', 'n', "sub"),
    ('ₜ', 't', "sub"),
    ('⁰', '0', "sup"),
    ('¹', '1', "sup"),
    ('²', '2', "sup"),
    ('³', '3', "sup"),
    ('⁴', '4', "sup"),
    ('⁵', '5', "sup"),
    ('⁶', '6', "sup"),
    ('⁷', '7', "sup"),
    ('⁸', '8', "sup"),
    ('⁹', '9', "sup"),
    ('⁺', '+', "sup"),
    ('⁻', '−', "sup"),
    ('ᵀ', 'T', "sup"),
    ('ⁱ', 'i', "sup"),
    ('ⁿ', 'n', "sup"),
    ('ʳ', 'r', "sup"),
    ('ᵏ', 'k', "sup"),
];

/// `text` as HTML. Fonts lack many of the small letters, or have them in another shape: the page sets them itself.
pub(super) fn html(text: &str) -> String {
    let mut out = String::new();
    let mut inside = "";
    for c in text.chars() {
        let small = RAISED.iter().find(|(small, ..)| *small == c);
        let element = small.map_or("", |(_, _, element)| element);
        if element != inside {
            if !inside.is_empty() {
                out.push_str(&format!("</{inside}>"));
            }
            if !element.is_empty() {
                out.push_str(&format!("<{element}>"));
            }
            inside = element;
        }
        match small.map_or(c, |(_, plain, _)| *plain) {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    if !inside.is_empty() {
        out.push_str(&format!("</{inside}>"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_and_exponents_are_elements() {
        assert_eq!(html("W₀x + (α/r)·BAx"), "W<sub>0</sub>x + (α/r)·BAx");
        assert_eq!(html("‖UᵢᵀVⱼ‖² < 1"), "‖U<sub>i</sub><sup>T</sup>V<sub>j</sub>‖<sup>2</sup> &lt; 1");
        assert_eq!(html("3×10⁻⁴"), "3×10<sup>−4</sup>");
        assert_eq!(html("<b> & \"c\""), "&lt;b&gt; &amp; &quot;c&quot;");
    }
}
