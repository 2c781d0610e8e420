//! Typed reading of TOML that notes mistakes instead of stopping at them.
//!
//! A [`Reader`] walks one table. Each getter also teaches it that the field exists, so [`Reader::done`] knows what is
//! unknown without a second list of names.

use std::{fmt::Display, ops::RangeInclusive, time::Duration};

use clap::ValueEnum;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    mistake::Notes,
    text::{self, Wrong},
};

/// One table being read.
pub(super) struct Reader<'a> {
    table: &'a DeTable<'a>,
    field: String,
    known: Vec<&'static str>,
    notes: &'a Notes,
}

/// One value being read.
pub(super) struct Item<'a> {
    value: &'a DeValue<'a>,
    field: String,
    notes: &'a Notes,
}

impl<'a> Reader<'a> {
    pub(super) fn root(table: &'a DeTable<'a>, notes: &'a Notes) -> Self {
        Self { table, field: String::new(), known: Vec::new(), notes }
    }

    /// The path of one of this table's fields.
    pub(super) fn path(&self, name: &str) -> String {
        if self.field.is_empty() { name.to_owned() } else { format!("{}.{name}", self.field) }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.table.get(name).is_some()
    }

    /// A field, if it is there.
    pub(super) fn item(&mut self, name: &'static str) -> Option<Item<'a>> {
        self.known.push(name);
        let value = self.table.get(name)?;
        Some(Item::new(value, self.path(name), self.notes))
    }

    /// A table, if it is there.
    pub(super) fn table(&mut self, name: &'static str) -> Option<Self> {
        self.item(name)?.table(&format!("write [{name}] on a line of its own"))
    }

    /// A list of tables, empty if there is none.
    pub(super) fn tables(&mut self, name: &'static str) -> Vec<Self> {
        let Some(item) = self.item(name) else { return Vec::new() };
        let path = item.field.split('.').map(|part| part.split('[').next().unwrap_or(part));
        let mend = format!("write [[{}]] above each", path.collect::<Vec<_>>().join("."));
        let Some(elements) = item.elements(&mend) else { return Vec::new() };
        elements.iter().filter_map(|element| element.table(&mend)).collect()
    }

    pub(super) fn parsed<T>(&mut self, name: &'static str, read: impl Fn(&str) -> Result<T, Wrong>) -> Option<T> {
        self.item(name)?.parsed(read)
    }

    pub(super) fn number<T>(&mut self, name: &'static str, range: RangeInclusive<T>) -> Option<T>
    where
        T: TryFrom<i128> + PartialOrd + Display,
    {
        self.item(name)?.number(range)
    }

    /// A map's size, rounded up to a power of two.
    pub(super) fn size(&mut self, name: &'static str, range: RangeInclusive<u32>) -> Option<u32> {
        self.number(name, range).map(u32::next_power_of_two)
    }

    pub(super) fn choice<T: ValueEnum>(&mut self, name: &'static str) -> Option<T> {
        self.item(name)?.choice()
    }

    pub(super) fn flag(&mut self, name: &'static str) -> Option<bool> {
        let item = self.item(name)?;
        item.value.as_bool().or_else(|| item.not_a("true or false", "write true or false, without quotes"))
    }

    pub(super) fn duration(&mut self, name: &'static str, range: RangeInclusive<Duration>) -> Option<Duration> {
        let (least, most) = (humantime::format_duration(*range.start()), humantime::format_duration(*range.end()));
        self.item(name)?.parsed(|text| match text::duration(text)? {
            duration if range.contains(&duration) => Ok(duration),
            _ => Err(Wrong::new(
                format!("{text:?} is not within {least} to {most}"),
                format!("write a duration from \"{least}\" to \"{most}\""),
            )),
        })
    }

    /// Insists on a field that was just read: if it is missing, that is noted. Either way reading goes on, with the
    /// placeholder.
    pub(super) fn must<T>(&self, name: &str, value: Option<T>, placeholder: T, mend: &str) -> T {
        if value.is_none() && !self.has(name) {
            self.notes.report_missing(&self.path(name), format!("{name:?} is missing"), mend);
        }
        value.unwrap_or(placeholder)
    }

    /// Notes a mistake at one of this table's fields.
    pub(super) fn wrong(&self, name: &str, wrong: Wrong) {
        self.notes.report(&self.path(name), wrong.message, wrong.mend);
    }

    /// Notes the fields that nobody asked for.
    pub(super) fn done(self) {
        for (key, _) in self.table.iter().filter(|(key, _)| !self.known.contains(&key.get_ref().as_ref())) {
            let path = self.path(key.get_ref());
            self.notes.put_place(&path, key.span());
            let mend = match nearest(key.get_ref(), &self.known) {
                Some(name) => format!("did you mean {name:?}?"),
                None => format!("remove it; known here: {}", self.known.join(", ")),
            };
            self.notes.report(&path, format!("unknown field {:?}", key.get_ref()), mend);
        }
    }
}

impl<'a> Item<'a> {
    fn new(value: &'a Spanned<DeValue<'a>>, field: String, notes: &'a Notes) -> Self {
        notes.put_place(&field, value.span());
        Self { value: value.get_ref(), field, notes }
    }

    fn wrong<T>(&self, wrong: Wrong) -> Option<T> {
        self.notes.report(&self.field, wrong.message, wrong.mend);
        None
    }

    fn not_a<T>(&self, wanted: &str, mend: &str) -> Option<T> {
        let found = match self.value {
            DeValue::Boolean(value) => value.to_string(),
            DeValue::Integer(value) => value.to_string(),
            DeValue::String(value) => format!("the text {value:?}"),
            other => format!("a TOML {}", other.type_str()),
        };
        self.wrong(Wrong::new(format!("expected {wanted}, found {found}"), mend))
    }

    pub(super) fn is_text(&self) -> bool {
        self.value.is_str()
    }

    pub(super) fn is_list(&self) -> bool {
        self.value.is_array()
    }

    pub(super) fn parsed<T>(&self, read: impl Fn(&str) -> Result<T, Wrong>) -> Option<T> {
        let Some(text) = self.value.as_str() else { return self.not_a("text", "write text between double quotes") };
        read(text).map_or_else(|wrong| self.wrong(wrong), Some)
    }

    pub(super) fn number<T>(&self, range: RangeInclusive<T>) -> Option<T>
    where
        T: TryFrom<i128> + PartialOrd + Display,
    {
        let mend = format!("write a whole number from {} to {}", range.start(), range.end());
        let Some(integer) = self.value.as_integer() else { return self.not_a("a number", &mend) };
        let number =
            i128::from_str_radix(integer.as_str(), integer.radix()).ok().and_then(|wide| T::try_from(wide).ok());
        match number.filter(|number| range.contains(number)) {
            Some(number) => Some(number),
            None => {
                self.wrong(Wrong::new(format!("{integer} is not within {} to {}", range.start(), range.end()), mend))
            }
        }
    }

    fn choice<T: ValueEnum>(&self) -> Option<T> {
        let choices = || T::value_variants().iter().filter_map(|choice| Some((choice, choice.to_possible_value()?)));
        let names: Vec<String> = choices().map(|(_, value)| format!("{:?}", value.get_name())).collect();
        let mend = format!("write one of {}", names.join(", "));
        self.parsed(|text| {
            let chosen = choices().find(|(_, value)| value.get_name() == text);
            chosen
                .map(|(choice, _)| choice.clone())
                .ok_or_else(|| Wrong::new(format!("{text:?} is not a choice"), &mend))
        })
    }

    /// The elements of a list.
    pub(super) fn elements(&self, mend: &str) -> Option<Vec<Self>> {
        let Some(array) = self.value.as_array() else { return self.not_a("a list", mend) };
        let element = |(index, value)| Self::new(value, format!("{}[{index}]", self.field), self.notes);
        Some(array.iter().enumerate().map(element).collect())
    }

    fn table(&self, mend: &str) -> Option<Reader<'a>> {
        let Some(table) = self.value.as_table() else { return self.not_a("a table", mend) };
        Some(Reader { table, field: self.field.clone(), known: Vec::new(), notes: self.notes })
    }
}

/// The known name that was probably meant.
fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let distance = |known: &&str| strsim::damerau_levenshtein(name, known);
    known.iter().copied().min_by_key(distance).filter(|best| distance(best) <= best.len().div_ceil(3))
}
