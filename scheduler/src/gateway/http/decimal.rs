//! Money as decimal text: nano-credits to credits and back, digit by digit. Never goes through floating point.

use cuckoo_wire::limits::NANO_PER_CREDIT;
use serde_json::Value;

/// Decimals of a credit.
const CREDIT_DECIMALS: usize = 9;
/// A price names nano-credits per million tokens; per token it has six decimals more.
const PER_TOKEN_DECIMALS: usize = CREDIT_DECIMALS + 6;

const _: () = assert!(NANO_PER_CREDIT == 10_u64.pow(CREDIT_DECIMALS as u32));

/// Why a JSON value is no amount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DecimalError {
    /// Neither a number nor a string of digits.
    #[error("is not a decimal amount of credits: send a number or a string such as \"0.05\"")]
    NotDecimal,
    /// Below zero.
    #[error("is negative: send 0 or more")]
    Negative,
    /// More than nine decimals.
    #[error("is finer than a nano-credit: send at most {CREDIT_DECIMALS} decimals")]
    TooFine,
    /// Does not fit.
    #[error("is too large")]
    TooLarge,
}

/// Nano-credits as credits, such as `"0.000000042"`.
pub(super) fn credits(nano: u64) -> String {
    scaled(nano, CREDIT_DECIMALS)
}

/// Nano-credits per million tokens as credits per token.
pub(super) fn credits_per_token(nano_per_mtok: u64) -> String {
    scaled(nano_per_mtok, PER_TOKEN_DECIMALS)
}

/// Credits, as a JSON number or a decimal string, in nano-credits: exactly or not at all.
pub(super) fn nano_credits(value: &Value) -> Result<u64, DecimalError> {
    match value {
        Value::String(text) => parse(text),
        // A float is read as the shortest decimal that means it, which is what its sender wrote; `Display` of `f64` never
        // uses an exponent.
        Value::Number(number) => match (number.as_u64(), number.as_f64()) {
            (Some(whole), _) => whole.checked_mul(NANO_PER_CREDIT).ok_or(DecimalError::TooLarge),
            (None, Some(float)) => parse(&float.to_string()),
            (None, None) => Err(DecimalError::NotDecimal),
        },
        _ => Err(DecimalError::NotDecimal),
    }
}

fn parse(text: &str) -> Result<u64, DecimalError> {
    if let Some(rest) = text.strip_prefix('-') {
        return Err(parse(rest).map_or_else(|e| e, |_| DecimalError::Negative));
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || text.ends_with('.') {
        return Err(DecimalError::NotDecimal);
    }
    let fraction = fraction.trim_end_matches('0');
    if fraction.len() > CREDIT_DECIMALS {
        return Err(DecimalError::TooFine);
    }
    // All digits by now, so the only way to fail is to overflow.
    format!("{whole}{fraction:0<CREDIT_DECIMALS$}").parse().map_err(|_| DecimalError::TooLarge)
}

/// `amount / 10^decimals`, without trailing zeros.
fn scaled(amount: u64, decimals: usize) -> String {
    let digits = format!("{amount:0>width$}", width = decimals + 1);
    let (whole, fraction) = digits.split_at(digits.len() - decimals);
    match fraction.trim_end_matches('0') {
        "" => whole.to_owned(),
        fraction => format!("{whole}.{fraction}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn amounts_print_without_noise() {
        assert_eq!(credits(0), "0");
        assert_eq!(credits(42), "0.000000042");
        assert_eq!(credits(1_500_000_000), "1.5");
        assert_eq!(credits(u64::MAX), "18446744073.709551615");
        assert_eq!(credits_per_token(30_000_000), "0.00000003");
        assert_eq!(credits_per_token(1), "0.000000000000001");
    }

    #[test]
    fn amounts_are_read_exactly_or_refused() {
        let good = [
            (json!("0.03"), 30_000_000),
            (json!(0.03), 30_000_000),
            (json!(0.1), 100_000_000),
            (json!(1e-9), 1),
            (json!(2), 2_000_000_000),
            (json!("2.000000000000"), 2_000_000_000),
            (json!("007.5"), 7_500_000_000),
            (json!(0), 0),
        ];
        for (value, nano) in good {
            assert_eq!(nano_credits(&value), Ok(nano), "{value}");
        }
        let bad = [
            (json!("-1"), DecimalError::Negative),
            (json!(-0.5), DecimalError::Negative),
            (json!(-3), DecimalError::Negative),
            (json!("0.0000000001"), DecimalError::TooFine),
            (json!(1e300), DecimalError::TooLarge),
            (json!(u64::MAX), DecimalError::TooLarge),
            (json!("99999999999999999999"), DecimalError::TooLarge),
            (json!("1e3"), DecimalError::NotDecimal),
            (json!("NaN"), DecimalError::NotDecimal),
            (json!("1."), DecimalError::NotDecimal),
            (json!(".5"), DecimalError::NotDecimal),
            (json!(""), DecimalError::NotDecimal),
            (json!("--1"), DecimalError::Negative),
            (json!("-x"), DecimalError::NotDecimal),
            (json!(true), DecimalError::NotDecimal),
            (json!([1]), DecimalError::NotDecimal),
        ];
        for (value, error) in bad {
            assert_eq!(nano_credits(&value), Err(error), "{value}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(nano: u64) {
            prop_assert_eq!(nano_credits(&json!(credits(nano))), Ok(nano));
        }

        #[test]
        fn noise_never_panics(text: String) {
            let _ = nano_credits(&json!(text));
        }
    }
}
