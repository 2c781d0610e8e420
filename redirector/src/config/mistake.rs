//! Mistakes, where they are, and how they are shown.
//!
//! Shown with `annotate-snippets`, which draws rustc's and cargo's own messages: readers know the look, spans are byte
//! ranges as `toml` gives them, control characters of the file are made harmless, and it draws without colour too.
//! The other candidate, `ariadne`, draws well but wants its source and id types threaded through every report, shows
//! only a look of its own, and is less often released.

use std::{cell::RefCell, collections::HashMap, fmt, ops::Range};

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde::Serialize;

/// More mistakes than this are counted but not drawn: nobody reads them, and each drawing walks the whole text.
const DRAWN_MAX: usize = 50;

/// One mistake in a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mistake {
    /// Bytes of the text that are wrong; the table's header if something is missing from it.
    pub span: Range<usize>,
    /// Line of the span's start, from 1; 0 if the mistake has no place in the text.
    pub line: usize,
    /// Column of the span's start in characters, from 1; 0 if the mistake has no place in the text.
    pub column: usize,
    /// The field as a path, such as `pool[0].backend[2].weight`, elements counted from 0; empty for syntax.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub mend: String,
}

/// Everything that is wrong with a configuration, in the order of the text.
#[derive(Debug)]
pub struct Mistakes {
    file: String,
    text: String,
    list: Vec<Mistake>,
}

impl std::error::Error for Mistakes {}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl Mistakes {
    pub(super) fn new(file: &str, text: &str, mut list: Vec<Mistake>) -> Self {
        list.sort_by(|a, b| (a.span.start, &a.field).cmp(&(b.span.start, &b.field)));
        Self { file: file.to_owned(), text: text.to_owned(), list }
    }

    /// A file that could not be read at all.
    pub(super) fn unread(file: &str, message: String, mend: &str) -> Self {
        let mistake = Mistake { span: 0..0, line: 0, column: 0, field: String::new(), message, mend: mend.to_owned() };
        Self { file: file.to_owned(), text: String::new(), list: vec![mistake] }
    }

    /// The file's name.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The mistakes, at least one.
    pub fn list(&self) -> &[Mistake] {
        &self.list
    }

    /// All mistakes as text for a terminal, with the lines that they are in.
    pub fn render(&self, colour: bool) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let mut drawn: Vec<String> =
            self.list.iter().take(DRAWN_MAX).map(|mistake| self.draw(mistake, &renderer)).collect();
        drawn.push(match (self.list.len(), self.list.len().saturating_sub(DRAWN_MAX)) {
            (1, _) => format!("1 mistake in {}", self.file),
            (all, 0) => format!("{all} mistakes in {}", self.file),
            (all, more) => format!("{all} mistakes in {}, the last {more} not shown", self.file),
        });
        drawn.join("\n\n")
    }

    fn draw(&self, mistake: &Mistake, renderer: &Renderer) -> String {
        let title = Level::ERROR.primary_title(&mistake.message);
        let mend = Level::HELP.message(&mistake.mend);
        if mistake.line == 0 {
            return renderer.render(&[title.element(mend)]);
        }
        let place = AnnotationKind::Primary.span(mistake.span.clone()).label(&mistake.field);
        let source = Snippet::source(&self.text).path(&self.file).annotation(place);
        renderer.render(&[title.element(source).element(mend)])
    }
}

/// Where mistakes and the places of fields are noted while a text is read.
pub(super) struct Notes {
    /// Byte offsets at which lines start.
    lines: Vec<usize>,
    text: String,
    places: RefCell<HashMap<String, Range<usize>>>,
    mistakes: RefCell<HashMap<String, Mistake>>,
    syntax: Vec<Mistake>,
}

impl Notes {
    pub(super) fn new(text: &str, errors: &[toml::de::Error]) -> Self {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        let mut notes = Self {
            lines,
            text: text.to_owned(),
            places: RefCell::default(),
            mistakes: RefCell::default(),
            syntax: Vec::new(),
        };
        notes.syntax = errors.iter().map(|error| notes.syntax_mistake(error)).collect();
        notes
    }

    fn syntax_mistake(&self, error: &toml::de::Error) -> Mistake {
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        let mend = match message.as_str() {
            m if m.contains("duplicate key") => "keep one of the two; a list of tables is written [[name]]",
            m if m.contains("string") || m.contains("quote") => "put text between double quotes, on one line",
            _ => "correct the TOML here: key = value, [table] or [[list of tables]]",
        };
        self.mistake(error.span().unwrap_or(0..0), "", message, mend)
    }

    fn mistake(&self, span: Range<usize>, field: &str, message: impl Into<String>, mend: impl Into<String>) -> Mistake {
        let (line, column) = self.line_and_column(span.start);
        Mistake { span, line, column, field: field.to_owned(), message: message.into(), mend: mend.into() }
    }

    fn line_and_column(&self, at: usize) -> (usize, usize) {
        let line = self.lines.partition_point(|&start| start <= at);
        let start = self.lines[line - 1];
        let column = self.text.get(start..at).map_or(1, |before| before.chars().count() + 1);
        (line, column)
    }

    pub(super) fn put_place(&self, field: &str, span: Range<usize>) {
        self.places.borrow_mut().insert(field.to_owned(), span);
    }

    /// The span of a field, or of the nearest table around it that is in the text.
    fn place(&self, field: &str) -> Range<usize> {
        let places = self.places.borrow();
        let mut name = field;
        loop {
            match (places.get(name), name.rfind('.')) {
                (Some(span), _) => return span.clone(),
                (None, Some(dot)) => name = &name[..dot],
                (None, None) => return 0..0,
            }
        }
    }

    /// The line of a field, for messages that point at a second place.
    pub(super) fn line(&self, field: &str) -> usize {
        self.line_and_column(self.place(field).start).0
    }

    /// Whether a field, or a table around it, has a mistake.
    pub(super) fn is_wrong(&self, field: &str) -> bool {
        let mistakes = self.mistakes.borrow();
        let around = field.match_indices('.').map(|(dot, _)| &field[..dot]);
        around.chain([field]).any(|name| mistakes.contains_key(name))
    }

    /// Notes a mistake at a field, unless there is one already.
    pub(super) fn report(&self, field: &str, message: impl Into<String>, mend: impl Into<String>) {
        if !self.is_wrong(field) {
            let mistake = self.mistake(self.place(field), field, message, mend);
            self.mistakes.borrow_mut().insert(field.to_owned(), mistake);
        }
    }

    /// Notes that a field is missing. After a syntax error that may be the parser's doing, and is left unsaid.
    pub(super) fn report_missing(&self, field: &str, message: String, mend: &str) {
        if self.syntax.is_empty() {
            self.report(field, message, mend);
        }
    }

    /// All mistakes. After syntax errors, what is on the same line or at a place that the parser made up is their
    /// consequence and is left out.
    pub(super) fn into_mistakes(self) -> Vec<Mistake> {
        let mut list = self.syntax;
        let broken: Vec<usize> = list.iter().map(|mistake| mistake.line).collect();
        let real = |mistake: &Mistake| broken.is_empty() || !mistake.span.is_empty() && !broken.contains(&mistake.line);
        list.extend(self.mistakes.into_inner().into_values().filter(real));
        list
    }
}
