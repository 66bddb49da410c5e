//! A picture of bars, each made of named parts: written by hand, no more than the benches need.

use std::fmt::Write;

const COLOURS: [&str; 8] =
    ["#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377", "#bbbbbb", "#777777"];
const BAR_WIDTH: f64 = 640.0;
const BAR_HEIGHT: usize = 24;
const LABEL_WIDTH: usize = 300;
const ROW_HEIGHT: usize = 34;

/// One bar: its name and its parts in microseconds, left to right.
#[derive(Debug)]
pub struct Bar {
    /// Shown at its left.
    pub name: String,
    /// Name and length of each part. Equal names have equal colours.
    pub parts: Vec<(String, f64)>,
}

impl Bar {
    /// A bar of one part.
    pub fn plain(name: &str, us: f64) -> Bar {
        Bar { name: name.to_owned(), parts: vec![(name.to_owned(), us)] }
    }

    fn length_us(&self) -> f64 {
        self.parts.iter().map(|(_, us)| us).sum()
    }
}

/// The bars under a title, to one scale.
pub fn bars(title: &str, bars: &[Bar]) -> String {
    let longest_us = bars.iter().map(Bar::length_us).fold(1.0, f64::max);
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in bars.iter().flat_map(|bar| &bar.parts) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let (width, height) = (LABEL_WIDTH + BAR_WIDTH as usize + 120, 40 + ROW_HEIGHT * bars.len());
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<text x=\"8\" y=\"22\" font-size=\"16\">{}</text>\n",
        escaped(title)
    );
    for (row, bar) in bars.iter().enumerate() {
        let (y, mut x) = (36 + row * ROW_HEIGHT, LABEL_WIDTH as f64);
        let _ = writeln!(svg, "<text x=\"8\" y=\"{}\">{}</text>", y + 17, escaped(&bar.name));
        for (name, us) in &bar.parts {
            let colour = names.iter().position(|known| known == name).unwrap_or(0) % COLOURS.len();
            let length = us / longest_us * BAR_WIDTH;
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y}\" width=\"{length:.1}\" height=\"{BAR_HEIGHT}\" fill=\"{}\"><title>{}: {us:.1} \
                 us</title></rect>",
                COLOURS[colour],
                escaped(name)
            );
            if bar.parts.len() > 1 && length > 60.0 {
                let _ = writeln!(
                    svg,
                    "<text x=\"{:.1}\" y=\"{}\" fill=\"white\">{}</text>",
                    x + 4.0,
                    y + 17,
                    escaped(name)
                );
            }
            x += length;
        }
        let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{}\">{:.0} us</text>", x + 6.0, y + 17, bar.length_us());
    }
    svg.push_str("</svg>\n");
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_to_one_scale_and_names_are_escaped() {
        let parts = vec![("a".to_owned(), 30.0), ("b".to_owned(), 20.0)];
        let picture = bars("x < y", &[Bar { name: "job".into(), parts }, Bar::plain("sync", 25.0)]);
        assert!(picture.contains("x &lt; y"));
        assert!(picture.contains("width=\"384.0\"") && picture.contains("width=\"256.0\""), "{picture}");
        assert!(picture.contains("width=\"320.0\"") && picture.ends_with("</svg>\n"), "{picture}");
    }
}
