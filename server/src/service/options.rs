//! The options of `SET`, `GETEX` and `EXPIRE`: read purely, and refused with the words that clients know.
//!
//! Times are checked when all options have been read. One that counts from now on is added up by the clock of the key's
//! slot, when the command takes effect; here it is only checked that it can be.

use lockgate_engine::{Condition, Expiry, SetOptions};

const SYNTAX: &str = "ERR syntax error";
const NOT_AN_INTEGER: &str = "ERR value is not an integer or out of range";

/// How a time is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TimeForm {
    /// What 1 stands for, in milliseconds.
    pub unit_ms: i64,
    /// Whether it counts from now on; otherwise from 1970.
    pub is_relative: bool,
}

impl TimeForm {
    const fn new(unit_ms: i64, is_relative: bool) -> TimeForm {
        TimeForm { unit_ms, is_relative }
    }

    /// The form that an option of `SET` and `GETEX` announces.
    fn of_option(option: &[u8]) -> Option<TimeForm> {
        match option {
            b"EX" => Some(TimeForm::new(1_000, true)),
            b"PX" => Some(TimeForm::new(1, true)),
            b"EXAT" => Some(TimeForm::new(1_000, false)),
            b"PXAT" => Some(TimeForm::new(1, false)),
            _ => None,
        }
    }

    /// The form of the time in `EXPIRE` and its like, by the command's name in upper case.
    pub(super) fn of_command(name: &str) -> TimeForm {
        let unit_ms = if name.starts_with('P') { 1 } else { 1_000 };
        TimeForm { unit_ms, is_relative: !name.ends_with("AT") }
    }

    /// The time in milliseconds; an error where it, or the time of the day plus it, is more than there is.
    fn milliseconds(self, arg: &[u8], command: &str) -> Result<i64, String> {
        let time = integer(arg)?;
        let sum = |time_ms: i64| match self.is_relative {
            true => time_ms.checked_add_unsigned(lockgate_runtime::unix_ms()),
            false => Some(time_ms),
        };
        let time_ms = time.checked_mul(self.unit_ms).filter(|time_ms| sum(*time_ms).is_some());
        time_ms.ok_or_else(|| invalid_time(command))
    }

    /// What a time of `SET` and `GETEX` asks for: it must be positive.
    fn positive(self, arg: &[u8], command: &str) -> Result<Expiry, String> {
        match self.milliseconds(arg, command)? {
            ..=0 => Err(invalid_time(command)),
            time_ms => Ok(self.expiry(time_ms)),
        }
    }

    /// What a time of `EXPIRE` and its like asks for: one before now, or before 1970, ends the key.
    pub(super) fn any(self, arg: &[u8], command: &str) -> Result<Expiry, String> {
        Ok(self.expiry(self.milliseconds(arg, command)?))
    }

    fn expiry(self, time_ms: i64) -> Expiry {
        match u64::try_from(time_ms) {
            Ok(time_ms) if self.is_relative => Expiry::After(time_ms),
            Ok(time_ms) => Expiry::At(time_ms),
            Err(_) => Expiry::At(0),
        }
    }
}

fn invalid_time(command: &str) -> String {
    format!("ERR invalid expire time in '{command}' command")
}

/// A whole number in the one way that it can be written: no plus, no zeros in front.
pub(super) fn integer(arg: &[u8]) -> Result<i64, String> {
    let text = std::str::from_utf8(arg).map_err(|_| NOT_AN_INTEGER)?;
    let number = text.parse::<i64>().ok().filter(|number| number.to_string() == text);
    number.ok_or_else(|| NOT_AN_INTEGER.to_owned())
}

/// What an option says about the key's end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End<'a> {
    Keep,
    Persist,
    Time(TimeForm, &'a [u8]),
}

impl End<'_> {
    /// Whether this may stand where `before` stood already.
    fn may_follow(self, before: Option<Self>) -> bool {
        match (before, self) {
            (None, _) => true,
            (Some(End::Time(before, _)), End::Time(form, _)) => before == form,
            (Some(before), end) => before == end,
        }
    }
}

/// The options of `SET key value`: `[NX|XX|IFEQ value] [GET] [EX s|PX ms|EXAT s|PXAT ms|KEEPTTL]`.
pub(super) fn set_options<'a>(options: &[&'a [u8]]) -> Result<SetOptions<'a>, String> {
    let (mut found, mut end) = (SetOptions::default(), None);
    let mut options = options.iter();
    while let Some(option) = options.next() {
        let option = option.to_ascii_uppercase();
        match (option.as_slice(), found.condition) {
            (b"NX", Condition::Always | Condition::IfAbsent) => found.condition = Condition::IfAbsent,
            (b"XX", Condition::Always | Condition::IfPresent) => found.condition = Condition::IfPresent,
            (b"IFEQ", Condition::Always) => {
                found.condition = Condition::IfEqual(options.next().ok_or(SYNTAX)?);
            }
            (b"GET", _) => found.return_previous = true,
            (b"KEEPTTL", _) => add_end(&mut end, End::Keep)?,
            (other, _) => add_end(&mut end, timed(other, options.next())?)?,
        }
    }
    found.expiry = match end {
        None => Expiry::Clear,
        Some(end) => expiry_of(end, "set")?,
    };
    Ok(found)
}

/// The options of `GETEX key`: `[EX s|PX ms|EXAT s|PXAT ms|PERSIST]`. `None`: the key's end stays as it is.
pub(super) fn getex_options(options: &[&[u8]]) -> Result<Option<Expiry>, String> {
    let mut end = None;
    let mut options = options.iter();
    while let Some(option) = options.next() {
        match option.to_ascii_uppercase().as_slice() {
            b"PERSIST" => add_end(&mut end, End::Persist)?,
            other => add_end(&mut end, timed(other, options.next())?)?,
        }
    }
    end.map(|end| expiry_of(end, "getex")).transpose()
}

fn timed<'a>(option: &[u8], arg: Option<&&'a [u8]>) -> Result<End<'a>, String> {
    let form = TimeForm::of_option(option);
    form.zip(arg).map(|(form, arg)| End::Time(form, arg)).ok_or_else(|| SYNTAX.to_owned())
}

fn add_end<'a>(end: &mut Option<End<'a>>, next: End<'a>) -> Result<(), String> {
    if !next.may_follow(*end) {
        return Err(SYNTAX.into());
    }
    *end = Some(next);
    Ok(())
}

fn expiry_of(end: End<'_>, command: &str) -> Result<Expiry, String> {
    match end {
        End::Keep => Ok(Expiry::Keep),
        End::Persist => Ok(Expiry::Clear),
        End::Time(form, arg) => form.positive(arg, command),
    }
}

/// When `EXPIRE` and its like have their effect: `[NX|XX|GT|LT]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ExpireOnly {
    if_none: bool,
    if_some: bool,
    if_later: bool,
    if_earlier: bool,
}

impl ExpireOnly {
    pub(super) fn parse(options: &[&[u8]]) -> Result<ExpireOnly, String> {
        let mut only = ExpireOnly::default();
        for option in options {
            match option.to_ascii_uppercase().as_slice() {
                b"NX" => only.if_none = true,
                b"XX" => only.if_some = true,
                b"GT" => only.if_later = true,
                b"LT" => only.if_earlier = true,
                _ => return Err(format!("ERR Unsupported option {}", String::from_utf8_lossy(option))),
            }
        }
        if only.if_none && (only.if_some || only.if_later || only.if_earlier) {
            return Err("ERR NX and XX, GT or LT options at the same time are not compatible".into());
        }
        if only.if_later && only.if_earlier {
            return Err("ERR GT and LT options at the same time are not compatible".into());
        }
        Ok(only)
    }

    /// Whether a key with the deadline `have` gets the deadline `wanted`. No deadline is later than any.
    pub(super) fn holds(self, have: Option<u64>, wanted: Option<u64>) -> bool {
        let time = |deadline_ms: Option<u64>| deadline_ms.unwrap_or(u64::MAX);
        let forbidden = [
            self.if_none && have.is_some(),
            self.if_some && have.is_none(),
            self.if_later && time(wanted) <= time(have),
            self.if_earlier && time(wanted) >= time(have),
        ];
        !forbidden.contains(&true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<&[u8]> {
        line.split_whitespace().map(str::as_bytes).collect()
    }

    fn set(line: &str) -> Result<SetOptions<'_>, String> {
        set_options(&words(line))
    }

    #[test]
    fn options_of_set() {
        assert_eq!(set(""), Ok(SetOptions::default()));
        let all = SetOptions {
            condition: Condition::IfEqual(b"old"),
            expiry: Expiry::After(5_000),
            return_previous: true,
        };
        assert_eq!(set("ex 5 ifeq old get"), Ok(all));
        assert_eq!(set("NX nx").unwrap().condition, Condition::IfAbsent);
        assert_eq!(set("XX KEEPTTL keepttl").unwrap().expiry, Expiry::Keep);
        assert_eq!(set("PX 7 PX 8").unwrap().expiry, Expiry::After(8));
        assert_eq!(set("EXAT 9").unwrap().expiry, Expiry::At(9_000));
        assert_eq!(set("PXAT 9").unwrap().expiry, Expiry::At(9));
        assert_eq!(set("IFEQ NX").unwrap().condition, Condition::IfEqual(b"NX"), "a value, whatever it says");
    }

    #[test]
    fn what_cannot_stand_together_is_a_syntax_error() {
        let lines = "NX XX, XX NX, NX IFEQ a, IFEQ a XX, IFEQ a IFEQ a, IFEQ, EX, PXAT, EX 5 PX 5, EX 5 EXAT 5, \
                     KEEPTTL EX 5, PX 5 KEEPTTL, PERSIST, nonsense, NX nonsense";
        for line in lines.split(", ") {
            assert_eq!(set(line), Err(SYNTAX.into()), "{line}");
        }
        for line in ["NX", "GET", "KEEPTTL", "EX", "PERSIST EX 5", "EX 5 PERSIST", "EX 5 PX 5"] {
            assert_eq!(getex_options(&words(line)), Err(SYNTAX.into()), "{line}");
        }
        // The time is looked at last.
        assert_eq!(set("EX nonsense NX XX"), Err(SYNTAX.into()));
    }

    #[test]
    fn times_are_checked() {
        let invalid = |command: &str| Err(format!("ERR invalid expire time in '{command}' command"));
        for time in ["0", "-1", "9223372036854775807", "9223372036854776"] {
            assert_eq!(set(&format!("EX {time}")), invalid("set"), "{time}");
        }
        assert_eq!(
            set("PX 9223372036854775807"),
            invalid("set"),
            "the sum with the time of the day overflows"
        );
        assert_eq!(set("PXAT 9223372036854775807").unwrap().expiry, Expiry::At(i64::MAX as u64));
        assert_eq!(getex_options(&words("EX 0")), Err("ERR invalid expire time in 'getex' command".into()));
        for time in ["x", "+1", "01", "-0", "1.5", "9223372036854775808", " 1"] {
            assert_eq!(set_options(&[b"EX", time.as_bytes()]), Err(NOT_AN_INTEGER.into()), "{time}");
        }
        let form = |name| TimeForm::of_command(name);
        assert_eq!(form("EXPIRE").any(b"10", "expire"), Ok(Expiry::After(10_000)));
        assert_eq!(form("PEXPIRE").any(b"-10", "pexpire"), Ok(Expiry::At(0)));
        assert_eq!(form("EXPIREAT").any(b"10", "expireat"), Ok(Expiry::At(10_000)));
        assert_eq!(form("PEXPIREAT").any(b"-1", "pexpireat"), Ok(Expiry::At(0)));
        assert_eq!(
            form("EXPIRE").any(b"-9223372036854775808", "expire"),
            Err("ERR invalid expire time in 'expire' command".into())
        );
        assert_eq!(getex_options(&[]), Ok(None));
        assert_eq!(getex_options(&words("persist")), Ok(Some(Expiry::Clear)));
    }

    #[test]
    fn conditions_of_expire() {
        let only = |line: &str| ExpireOnly::parse(&words(line));
        let holds = |line: &str| {
            let only = only(line).unwrap();
            [None, Some(5), Some(7), Some(9)].map(|have| only.holds(have, Some(7)))
        };
        assert_eq!(holds(""), [true; 4]);
        assert_eq!(holds("nx"), [true, false, false, false]);
        assert_eq!(holds("XX"), [false, true, true, true]);
        assert_eq!(holds("GT"), [false, true, false, false]);
        assert_eq!(holds("LT"), [true, false, false, true]);
        assert_eq!(holds("XX LT"), [false, false, false, true]);
        for line in ["NX XX", "GT NX", "NX LT"] {
            let text = "ERR NX and XX, GT or LT options at the same time are not compatible";
            assert_eq!(only(line), Err(text.into()), "{line}");
        }
        let text = "ERR GT and LT options at the same time are not compatible";
        assert_eq!(only("GT LT"), Err(text.into()));
        assert_eq!(only("XX foo"), Err("ERR Unsupported option foo".into()));
    }
}
