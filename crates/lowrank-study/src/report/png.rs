//! SVG to PNG.

use resvg::{tiny_skia, usvg};

use crate::error::{Error, Result};

/// Renders with the fonts of this machine.
pub(super) struct Painter {
    options: usvg::Options<'static>,
}

/// Twice the size of the drawing, for dense screens and print.
const SCALE: f32 = 2.0;

impl Painter {
    pub fn new() -> Self {
        let mut options = usvg::Options::default();
        options.fontdb_mut().load_system_fonts();
        // The drawings ask for any font without serifs: one of these, else whatever there is.
        let known = ["DejaVu Sans", "Liberation Sans", "Noto Sans", "Helvetica", "Arial"];
        let families: Vec<String> =
            options.fontdb.faces().flat_map(|f| &f.families).map(|(name, _)| name.clone()).collect();
        let best = known.into_iter().find(|name| families.iter().any(|f| f == name));
        if let Some(family) = best.or(families.first().map(String::as_str)) {
            options.fontdb_mut().set_sans_serif_family(family);
        }
        Self { options }
    }

    pub fn no_fonts(&self) -> bool {
        self.options.fontdb.is_empty()
    }

    pub fn png(&self, svg: &str) -> Result<Vec<u8>> {
        let failed = |what: &str| Error::Failed(format!("a figure cannot be drawn: {what}"));
        let tree = usvg::Tree::from_str(svg, &self.options).map_err(|e| failed(&e.to_string()))?;
        let size = tree.size().to_int_size().scale_by(SCALE).ok_or_else(|| failed("its size is 0"))?;
        let mut image =
            tiny_skia::Pixmap::new(size.width(), size.height()).ok_or_else(|| failed("it is too large"))?;
        image.fill(tiny_skia::Color::WHITE);
        resvg::render(&tree, tiny_skia::Transform::from_scale(SCALE, SCALE), &mut image.as_mut());
        image.encode_png().map_err(|e| failed(&e.to_string()))
    }
}
