//! Whether every rule of a grammar can come to an end. One that cannot would run until the output is cut off, or until
//! no token leads on.

use std::collections::{HashMap, HashSet};

use llguidance::api::ParserLimits;
use llguidance::derivre::StateID;
use llguidance::earley::lexerspec::LexemeIdx;
use llguidance::earley::{CGrammar, CSymIdx};

use super::ConstraintError;

/// Refuses grammars with a rule that no finite text satisfies, such as a list whose every item holds another list.
pub(super) fn check(grammar: &CGrammar, limits: &ParserLimits) -> Result<(), ConstraintError> {
    let empty = empty_lexemes(grammar, limits)?;
    let mut rules: Vec<(CSymIdx, usize)> = Vec::new();
    let mut users: HashMap<CSymIdx, Vec<usize>> = HashMap::new();
    let (mut seen, mut finite) = (vec![grammar.start()], Vec::new());
    let mut state: HashMap<CSymIdx, bool> = HashMap::from([(grammar.start(), false)]);
    // Everything that the start leads to; what ends without further ado is noted.
    while let Some(symbol) = seen.pop() {
        let data = grammar.sym_data(symbol);
        match data.lexeme {
            Some(lexeme) if empty.contains(&lexeme) => {}
            None if !data.is_terminal && !data.is_nullable => {}
            _ => finite.push(symbol),
        }
        for rule in grammar.rules_of(symbol) {
            let (parts, _, _) = grammar.rule_rhs(*rule);
            rules.push((symbol, parts.len()));
            if parts.is_empty() {
                finite.push(symbol);
            }
            for part in parts {
                users.entry(*part).or_default().push(rules.len() - 1);
                if state.insert(*part, false).is_none() {
                    seen.push(*part);
                }
            }
        }
    }
    // A rule ends if all its parts do, a symbol if one of its rules does.
    while let Some(symbol) = finite.pop() {
        if state.insert(symbol, true) == Some(true) {
            continue;
        }
        for rule in users.get(&symbol).into_iter().flatten() {
            let (whole, left) = &mut rules[*rule];
            *left -= 1;
            if *left == 0 {
                finite.push(*whole);
            }
        }
    }
    match state.into_iter().find(|(_, ends)| !ends) {
        None => Ok(()),
        Some((symbol, _)) => {
            let name: String = grammar.sym_data(symbol).name.chars().take(64).collect();
            Err(ConstraintError::Unsatisfiable(format!("'{name}' matches no text of finite length")))
        }
    }
}

/// The lexemes that match nothing.
fn empty_lexemes(grammar: &CGrammar, limits: &ParserLimits) -> Result<HashSet<LexemeIdx>, ConstraintError> {
    let lexer = grammar.lexer_spec();
    let mut regexes = lexer.to_regex_vec(&mut limits.clone()).map_err(|e| super::invalid(&e.to_string()))?;
    let mut empty = HashSet::new();
    for at in 0..lexer.lexemes.len() {
        let lexeme = LexemeIdx::new(at);
        let mut alone = lexer.alloc_lexeme_set();
        alone.add(lexeme);
        if regexes.initial_state(&alone) == StateID::DEAD {
            empty.insert(lexeme);
        }
    }
    Ok(empty)
}
