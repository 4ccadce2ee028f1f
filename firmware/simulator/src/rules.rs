//! What public drivers write, as rules.

/// Whether a picture suffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// Whatever was set besides: the picture comes out wrong.
    Always,
    /// After a set-up that nobody changed since; controls may.
    Fresh,
}

/// Registers that hold one of these values in every public driver that is named.
pub(crate) struct Rule {
    /// Bank (sensors without banks: 0 or the high byte) and register.
    pub register: u16,
    pub allowed: &'static [u8],
    pub when: When,
    pub what: &'static str,
    pub source: &'static str,
}

/// A register that holds what no public driver writes there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Which. Of the OV2640, bank and register.
    pub register: u16,
    /// What it holds.
    pub value: u8,
    /// What goes wrong.
    pub what: &'static str,
    /// Who says so.
    pub source: &'static str,
    pub(crate) spoils: bool,
}

impl Rule {
    /// The rule for several registers from one on.
    pub fn broken<'a>(rules: &'a [Rule], register: impl Fn(u16) -> u8 + 'a) -> impl Iterator<Item = Refusal> + 'a {
        rules.iter().filter_map(move |rule| {
            let value = register(rule.register);
            (!rule.allowed.contains(&value)).then_some(rule.refusal(value))
        })
    }

    fn refusal(&self, value: u8) -> Refusal {
        let spoils = self.when == When::Always;
        Refusal { register: self.register, value, what: self.what, source: self.source, spoils }
    }
}

/// `rules!` makes a table of rules: groups with one meaning and source, rows with a register and what it may hold.
macro_rules! rules {
    ($($when:ident, $what:literal, $source:literal: $($register:literal => [$($value:literal),+]),+;)+) => {
        &[$($($crate::rules::Rule {
            register: $register,
            allowed: &[$($value),+],
            when: $crate::rules::When::$when,
            what: $what,
            source: $source,
        },)+)+]
    };
}
pub(crate) use rules;
