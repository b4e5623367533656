//! Rust source as a flat list of tokens with lines, comments and literals' contents left out.

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// One token; groups are flattened to an opening and a closing token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) line: usize,
    /// Whether it stands inside an item marked `#[cfg(test)]` or `#[test]`.
    pub(crate) in_test: bool,
}

/// What a rule needs to tell apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A word: keyword or name.
    Word(String),
    /// One punctuation character, or an opening or closing bracket.
    Mark(char),
    /// A literal of any kind.
    Literal,
}

impl Token {
    /// The word, if it is one.
    pub(crate) fn word(&self) -> Option<&str> {
        match &self.kind {
            Kind::Word(word) => Some(word),
            Kind::Mark(_) | Kind::Literal => None,
        }
    }

    /// Whether it is this punctuation character or bracket.
    pub(crate) fn is(&self, mark: char) -> bool {
        self.kind == Kind::Mark(mark)
    }
}

/// Splits `text` into tokens, or says at which line it is not Rust and why.
pub(crate) fn lex(text: &str) -> Result<Vec<Token>, (usize, String)> {
    let stream: TokenStream =
        text.parse().map_err(|error: proc_macro2::LexError| (error.span().start().line, error.to_string()))?;
    let mut tokens = Vec::new();
    flatten(stream, false, &mut tokens);
    Ok(tokens)
}

/// Appends the tokens of `stream`. An item is a test's from its `#[cfg(test)]` to the end of its braces
/// or its semicolon.
fn flatten(stream: TokenStream, in_test: bool, tokens: &mut Vec<Token>) {
    let mut item_is_test = false;
    let mut after_hash = false;
    for tree in stream {
        let in_test = in_test || item_is_test;
        let line = tree.span().start().line;
        let mut push = |kind, line| tokens.push(Token { kind, line, in_test });
        let was_after_hash = std::mem::take(&mut after_hash);
        match tree {
            TokenTree::Ident(word) => push(Kind::Word(word.to_string()), line),
            TokenTree::Literal(_) => push(Kind::Literal, line),
            TokenTree::Punct(mark) => {
                after_hash = mark.as_char() == '#';
                push(Kind::Mark(mark.as_char()), line);
                if mark.as_char() == ';' {
                    item_is_test = false;
                }
            }
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Brace => ('{', '}'),
                    Delimiter::Parenthesis => ('(', ')'),
                    Delimiter::Bracket => ('[', ']'),
                    Delimiter::None => (' ', ' '),
                };
                let marks_test = was_after_hash && open == '[' && is_test_attribute(&group.stream());
                push(Kind::Mark(open), line);
                let end = group.span_close().start().line;
                flatten(group.stream(), in_test, tokens);
                tokens.push(Token { kind: Kind::Mark(close), line: end, in_test });
                item_is_test |= marks_test;
                if open == '{' {
                    item_is_test = false;
                }
            }
        }
    }
}

/// `cfg(test)`, `cfg(all(test, …))`, `test`; not `cfg(not(test))`.
fn is_test_attribute(attribute: &TokenStream) -> bool {
    let text: String = attribute.to_string().split_whitespace().collect();
    text == "test" || text == "cfg(test)" || text.starts_with("cfg(all(test,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_hold_no_words() {
        let tokens = lex("//! crate::detect\nlet a = \"crate::detect\"; // sleep()\n").unwrap_or_default();
        assert!(!tokens.iter().any(|token| token.word() == Some("detect")));
        assert!(!tokens.iter().any(|token| token.word() == Some("sleep")));
    }

    #[test]
    fn knows_what_is_test_code_and_where_it_ends() {
        let source = "fn a() {}\n#[cfg(test)]\nmod tests { fn b() {} }\n#[cfg(test)]\nuse c::d;\nfn e() {}\n#[cfg(not(test))]\nfn f() {}\n";
        let tokens = lex(source).unwrap_or_default();
        let tested: Vec<&str> = tokens.iter().filter(|token| token.in_test).filter_map(Token::word).collect();
        assert_eq!(tested, ["mod", "tests", "fn", "b", "use", "c", "d"]);
        assert_eq!(tokens.iter().find(|token| token.word() == Some("e")).map(|token| token.line), Some(6));
    }

    #[test]
    fn says_where_it_is_not_rust() {
        assert!(lex("fn a() {\n").is_err());
    }
}
