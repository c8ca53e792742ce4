//! What imports what: the list on the page of `src/lib.rs`, held against every path in the code.

#![expect(clippy::panic, reason = "a test's panic is its message")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, File, Item, ItemMod, Macro, UseTree};

/// The page that holds the list.
const PAGE: &str = include_str!("../src/lib.rs");
/// Where the list begins there.
const HEADING: &str = "//! # What imports what";
/// The crates that only one module knows.
const AYA: [&str; 3] = ["aya", "aya_log", "aya_obj"];
/// That module.
const KNOWS_AYA: &str = "datapath";

/// Modules and their layers, from the lines `//! 3. ...` below the heading; a module may have one name only.
fn layers(page: &str) -> BTreeMap<String, usize> {
    let (_, section) = page.split_once(HEADING).unwrap_or_else(|| panic!("src/lib.rs has no line {HEADING}"));
    let mut layers = BTreeMap::new();
    let lines = section.lines().map_while(|line| line.strip_prefix("//!").or(line.is_empty().then_some("")));
    for (layer, line) in lines.filter(|line| line.trim_start().starts_with(|c: char| c.is_ascii_digit())).enumerate() {
        for module in line.split('`').skip(1).step_by(2) {
            assert_eq!(layers.insert(module.to_owned(), layer), None, "{module} stands twice");
        }
    }
    layers
}

/// Everything that a file's code names by a path, tests aside.
struct Paths {
    /// The module that the visitor is in, below the crate.
    module: Vec<String>,
    /// Modules with files of their own, and the files' directories of modules.
    files: Vec<Vec<String>>,
    /// Resolved: `["crate", module, ...]`, or a crate's name first.
    found: Vec<Vec<String>>,
}

impl Paths {
    fn note(&mut self, path: &[String]) {
        let Some(first) = path.first() else { return };
        let mut resolved = vec!["crate".to_owned()];
        match first.as_str() {
            "crate" => resolved.extend_from_slice(&path[1..]),
            "self" | "super" => {
                let up = path.iter().take_while(|segment| *segment == "super").count();
                let down = usize::from(first == "self").max(up);
                resolved.extend_from_slice(&self.module[..self.module.len() - up.min(self.module.len())]);
                resolved.extend_from_slice(&path[down..]);
            }
            _ => resolved = path.to_vec(),
        }
        self.found.push(resolved);
    }

    fn tree(&mut self, prefix: &mut Vec<String>, tree: &UseTree) {
        match tree {
            UseTree::Path(path) => {
                prefix.push(path.ident.to_string());
                self.tree(prefix, &path.tree);
                prefix.pop();
            }
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.tree(prefix, tree)),
            UseTree::Name(name) => self.note(&[&prefix[..], &[name.ident.to_string()]].concat()),
            UseTree::Rename(name) => self.note(&[&prefix[..], &[name.ident.to_string()]].concat()),
            UseTree::Glob(_) => self.note(prefix),
        }
    }

    /// A macro's arguments are only words: the paths among them begin with `crate::` or with a crate's name.
    fn words(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.note(&std::mem::take(&mut path));
                    }
                    path.push(ident.to_string());
                    colons = 0;
                }
                other => {
                    self.note(&std::mem::take(&mut path));
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.words(group.stream());
                    }
                }
            }
        }
        self.note(&path);
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item(&mut self, item: &'ast Item) {
        match item {
            Item::Use(item) => self.tree(&mut Vec::new(), &item.tree),
            Item::Mod(item) if is_test(&item.attrs) => {}
            Item::Mod(ItemMod { ident, content, .. }) => {
                self.module.push(ident.to_string());
                match content {
                    Some((_, items)) => items.iter().for_each(|item| self.visit_item(item)),
                    None => self.files.push(self.module.clone()),
                }
                self.module.pop();
            }
            other => visit::visit_item(self, other),
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        // One segment is a name of this module's own.
        if segments.len() > 1 {
            self.note(&segments);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        self.words(call.tokens.clone());
        visit::visit_macro(self, call);
    }
}

/// True for `#[cfg(test)]`.
fn is_test(attributes: &[Attribute]) -> bool {
    attributes
        .iter()
        .any(|one| one.path().is_ident("cfg") && one.parse_args::<syn::Ident>().is_ok_and(|is| is == "test"))
}

/// The paths of a file, and the modules that it declares in files of their own.
fn paths(module: Vec<String>, text: &str) -> (Vec<Vec<String>>, Vec<Vec<String>>) {
    let file: File = syn::parse_file(text).unwrap_or_else(|error| panic!("{}: {error}", module.join("/")));
    let mut paths = Paths { module, files: Vec::new(), found: Vec::new() };
    paths.visit_file(&file);
    (paths.found, paths.files)
}

/// What a file does against the list, one line each.
fn faults(layers: &BTreeMap<String, usize>, module: &[String], found: &[Vec<String>]) -> Vec<String> {
    let Some(own) = module.first() else { return Vec::new() };
    let Some(layer) = layers.get(own) else { return vec![format!("{own}: not on the list of src/lib.rs")] };
    let fault = |path: &Vec<String>| {
        let name = || format!("{} imports {}", module.join("::"), path.join("::"));
        match (path.first()?.as_str(), path.get(1)) {
            ("crate", Some(other)) if other != own => match layers.get(other) {
                Some(theirs) if theirs < layer => None,
                Some(theirs) if theirs == layer => Some(format!("{}: of the same line", name())),
                Some(_) => Some(format!("{}: of a later line", name())),
                None => Some(format!("{}: no module of the list", name())),
            },
            (first, _) if AYA.contains(&first) && own != KNOWS_AYA => {
                Some(format!("{}: {KNOWS_AYA} alone may", name()))
            }
            _ => None,
        }
    };
    found.iter().filter_map(fault).collect()
}

/// Every module with a file, from `src/lib.rs` on, as the compiler finds them: what it does against the list.
fn all_faults() -> (Vec<String>, Vec<String>) {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let layers = layers(PAGE);
    let (mut all, mut seen) = (Vec::new(), Vec::new());
    let mut left: Vec<Vec<String>> = paths(Vec::new(), PAGE).1;
    while let Some(module) = left.pop() {
        let stem = module.iter().collect::<PathBuf>();
        let file = [src.join(&stem).with_extension("rs"), src.join(&stem).join("mod.rs")];
        let file = file.iter().find(|file| file.exists()).unwrap_or_else(|| panic!("no file of {}", stem.display()));
        let (found, files) = paths(module.clone(), &fs::read_to_string(file).expect("a source file"));
        all.extend(faults(&layers, &module, &found));
        left.extend(files);
        seen.push(stem.display().to_string());
    }
    (all, seen)
}

#[test]
fn no_module_imports_one_of_its_own_line_or_of_a_later_one() {
    let (faults, seen) = all_faults();
    for module in layers(PAGE).into_keys() {
        assert!(seen.contains(&module), "the list names {module}, which src/lib.rs does not declare");
    }
    assert!(faults.is_empty(), "against the list of src/lib.rs:\n{}", faults.join("\n"));
}

#[test]
fn each_form_of_an_import_is_seen() {
    let layers =
        BTreeMap::from([("low".to_owned(), 0), ("mid".to_owned(), 1), ("next".to_owned(), 1), ("top".to_owned(), 2)]);
    let faults_of = |text: &str| {
        faults(&layers, &["mid".to_owned(), "part".to_owned()], &paths(vec!["mid".into(), "part".into()], text).0)
    };
    for text in [
        "use crate::top::A;",
        "use crate::{low::{self, A}, top::{B as C}};",
        "use super::super::top;",
        "fn f() -> crate::top::A { loop {} }",
        "fn f() { say!(\"{}\", [1, crate::top::A]); }",
        "mod inner { use super::super::super::top::A; }",
        "use crate::next::A;",
        "use crate::unheard_of::A;",
        "use aya::maps::Map;",
        "fn f(map: aya_obj::Map) {}",
    ] {
        assert_eq!(faults_of(text).len(), 1, "{text}: {:?}", faults_of(text));
    }
    for text in [
        "use crate::low::A; use super::other::B; use self::own::C; use crate::mid::D;",
        "use std::top; fn f() { top::of(); }",
        "#[cfg(test)] mod tests { use crate::top::A; }",
        "pub(crate) fn f() {} pub(super) fn g() {}",
    ] {
        assert_eq!(faults_of(text), [""; 0], "{text}");
    }
}
