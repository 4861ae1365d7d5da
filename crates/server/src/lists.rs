//! Pages of lists: `limit` and `cursor` in, `next_cursor` out.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use evergrant_domain::Timestamp;

use crate::input::Query;
use crate::problem::Problem;
use crate::views::List;

const LIMIT_DEFAULT: u32 = 100;
const LIMIT_MAX: u32 = 1000;

/// Where an entry stands in a list: by creation, then id.
pub(crate) type Place = (Timestamp, String);

/// How many entries a page may have.
pub(crate) fn limit(query: &mut Query) -> Result<u32, Problem> {
    let expected = format!("a number from 1 to {LIMIT_MAX}");
    let limit = query.number::<u32>("limit", &expected)?.unwrap_or(LIMIT_DEFAULT);
    if (1..=LIMIT_MAX).contains(&limit) {
        Ok(limit)
    } else {
        Err(Problem::bad_request(format!("`limit`: expected {expected}")))
    }
}

/// After which place the page begins.
pub(crate) fn cursor(query: &mut Query) -> Result<Option<Place>, Problem> {
    query.one("cursor")?.as_deref().map(read_cursor).transpose()
}

pub(crate) fn write_cursor(at: Timestamp, id: &str) -> String {
    URL_SAFE_NO_PAD.encode(format!("{}:{id}", at.millis()))
}

/// A cursor gives no rights: it says where to go on, and the key's limits are applied to every page.
fn read_cursor(text: &str) -> Result<Place, Problem> {
    let read = || {
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let (at, id) = text.split_once(':')?;
        (!id.is_empty()).then_some(())?;
        Some((Timestamp::from_millis(at.parse().ok()?), id.to_owned()))
    };
    read().ok_or_else(not_a_cursor)
}

/// A cursor of three parts, of which the first two hold no colon.
pub(crate) fn coded_cursor(parts: &[&str; 3]) -> String {
    URL_SAFE_NO_PAD.encode(parts.join(":"))
}

/// Reads one. As any cursor it gives no rights.
pub(crate) fn decoded_cursor(text: &str) -> Result<[String; 3], Problem> {
    let read = || {
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let mut parts = text.splitn(3, ':').map(str::to_owned);
        Some([parts.next()?, parts.next()?, parts.next()?])
    };
    read().ok_or_else(not_a_cursor)
}

/// What is no `next_cursor` of another page.
pub(crate) fn not_a_cursor() -> Problem {
    Problem::bad_request("`cursor`: expected the next_cursor of another page")
}

/// One page of a list that is at hand as a whole, in the order of its places. Nothing else may be asked for.
pub(crate) fn page<T>(
    all: Vec<T>,
    place: impl Fn(&T) -> Place,
    mut query: Query,
) -> Result<List<T>, Problem> {
    let limit = limit(&mut query)? as usize;
    let after = cursor(&mut query)?;
    query.done()?;
    let is_ahead = |item: &T| after.as_ref().is_none_or(|after| place(item) > *after);
    let mut items: Vec<T> = all.into_iter().filter(is_ahead).take(limit + 1).collect();
    let is_last = items.len() <= limit;
    items.truncate(limit);
    let next_cursor = items.last().filter(|_| !is_last).map(|last| {
        let (at, id) = place(last);
        write_cursor(at, &id)
    });
    Ok(List { items, next_cursor })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_as_it_was_written_and_nothing_else_reads() {
        let at = Timestamp::from_millis(1_764_000_000_123);
        let place = (at, "a.b_c~d-e".to_owned());
        assert_eq!(read_cursor(&write_cursor(at, &place.1)).expect("a cursor"), place);
        for forged in ["", "x", "MTIz", "MTIzOg", "ä"] {
            assert!(read_cursor(forged).is_err(), "{forged}");
        }
    }

    #[test]
    fn pages_make_up_the_whole_list() {
        let place = |number: &i64| (Timestamp::from_millis(number / 2), number.to_string());
        let mut seen = Vec::new();
        let mut cursor = None;
        loop {
            let query = match &cursor {
                Some(cursor) => format!("limit=2&cursor={cursor}"),
                None => "limit=2".to_owned(),
            };
            let page = page((1..=5).collect(), place, Query::parse(Some(&query))).expect("a page");
            seen.extend(page.items);
            cursor = page.next_cursor;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(seen, [1, 2, 3, 4, 5]);
    }
}
