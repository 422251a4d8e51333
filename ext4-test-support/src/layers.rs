//! The order of a crate's modules, read from its source: which file names which, and whether that goes
//! downwards.
//!
//! ```text
//!   ARCHITECTURE.md ── floors_in ──► table ──┐
//!   src/lib.rs ─ mod a; mod b; … ──► Source ─┴► check_layers    names that do not go down
//!                                          └──► largest_circle  files that need each other
//! ```
//!
//! Read is every name of the crate itself: `use crate::{a::b, c}` with its groups, inline paths such as
//! `crate::log::X`, the tokens of macros, and `super::` chains that climb out of a folder. Comments, doc
//! links and whatever stands under `cfg(test)` are not read. Methods have no path: a call of one says nothing
//! about the file that has the `impl` block.
//!
//! Invariants of a crate that is in order:
//! - A module of the crate's root (a folder, or a file beside `lib.rs`) names only modules of lower floors
//!   and itself.
//! - No file names an item through `lib.rs`: what stands there is for users. Such a name would hide its
//!   floor.
//! - Each module of the root has a floor, and each floor a module: a table that says less or more than the
//!   source has would let an import pass unseen.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemUse, UseTree, Visibility};

/// A name that the table of floors does not allow, or a module that the table and the source do not agree on.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Violation {
    /// The file, from the folder of the sources on.
    pub file: PathBuf,
    /// The line in it, from 1 on; 0: the file as a whole.
    pub line: usize,
    /// What is wrong.
    pub problem: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, problem } = self;
        write!(f, "{}:{line}: {problem}", file.display())
    }
}

/// The table under the heading `### Floors of CRATE` of a Markdown page: each module of the crate's root with
/// its floor.
///
/// A row's first cell is the floor, a number; its second cell holds one or more names in backquotes. Further
/// cells are for readers of the page.
///
/// ```text
/// | 3 | `folder/`, `file.rs` | … |
/// ```
///
/// # Panics
/// If the page has no such heading or no row under it.
#[must_use]
pub fn floors_in(page: &str, crate_name: &str) -> Vec<(String, u32)> {
    let heading = format!("### Floors of {crate_name}");
    let below = page.lines().skip_while(|line| line.trim_end() != heading).skip(1);
    let rows = below.take_while(|line| !line.starts_with('#')).filter_map(|line| {
        let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
        Some((cells.next()?.parse::<u32>().ok()?, cells.next()?))
    });
    let names = |(floor, cell): (u32, &str)| {
        let quoted = cell.split('`').skip(1).step_by(2);
        let names = quoted.map(|name| name.trim_end_matches('/').trim_end_matches(".rs").to_owned());
        names.map(|name| (name, floor)).collect::<Vec<_>>()
    };
    let floors: Vec<_> = rows.flat_map(names).collect();
    assert!(!floors.is_empty(), "no table of floors under a heading `{heading}`");
    floors
}

/// The modules of a crate and the names they use of one another.
#[derive(Debug, Default)]
pub struct Source {
    modules: BTreeMap<Vec<String>, Module>,
    names: Vec<Name>,
}

/// A module, of a file or inside one.
#[derive(Debug, Default)]
struct Module {
    file: PathBuf,
    /// Modules declared in it.
    children: BTreeSet<String>,
    /// Items defined in it.
    items: BTreeSet<String>,
    /// What `use` brings into it: the name here, and the path from the crate's root.
    imports: BTreeMap<String, Vec<String>>,
    /// The modules of its `pub use …::*`, as paths from the crate's root.
    globs: Vec<Vec<String>>,
    /// Identifiers that stand in its bodies and signatures.
    idents: BTreeSet<String>,
}

/// A path into the crate.
#[derive(Debug)]
struct Name {
    /// The module that it stands in.
    module: Vec<String>,
    line: usize,
    /// The path from the crate's root; `*` at the end for a glob.
    path: Vec<String>,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// A `use` or an inline path.
    Plain,
    /// A `use` with a visibility: it is there for others.
    ReExport,
    /// An inline path that begins with something that a `use` brought in, which was read there.
    Imported,
}

impl Source {
    /// Reads the crate whose `lib.rs` lies in `src`.
    ///
    /// # Panics
    /// If a file cannot be read or is not Rust.
    #[must_use]
    pub fn read(src: &Path) -> Self {
        let mut files = BTreeMap::new();
        let mut folders = vec![src.to_owned()];
        while let Some(folder) = folders.pop() {
            let entries = folder.read_dir().unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
            for entry in entries {
                let path = entry.unwrap_or_else(|error| panic!("{}: {error}", folder.display())).path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let text = std::fs::read_to_string(&path);
                    let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                    let name = path.strip_prefix(src).unwrap_or(&path).to_owned();
                    files.insert(name, text);
                }
            }
        }
        Self::of(&files)
    }

    /// The crate of these files, each with its path from the folder of `lib.rs` on.
    fn of(files: &BTreeMap<PathBuf, String>) -> Self {
        let mut source = Self::default();
        let mut bodies = Vec::new();
        source.file(files, Path::new("lib.rs"), Vec::new(), &mut bodies);
        let mut uses = Vec::new();
        // Imports before bodies: a path in a body may begin with one.
        for (module, items) in &bodies {
            let mut reader = Reader::new(module);
            items.iter().for_each(|item| reader.visit_item(item));
            uses.append(&mut reader.uses);
            let found = source.modules.entry(module.clone()).or_default();
            found.idents.append(&mut reader.idents);
            source.names.extend(reader.paths.into_iter().map(|(line, path)| Name {
                module: module.clone(),
                line,
                path,
                kind: Kind::Plain,
            }));
        }
        let paths = std::mem::take(&mut source.names);
        for found in uses {
            source.add_use(found);
        }
        for Name { module, line, path, .. } in paths {
            let kind = match path.first().map(String::as_str) {
                Some("crate" | "self" | "super") => Kind::Plain,
                _ => Kind::Imported,
            };
            if let Some(path) = source.absolute(&module, &path, true) {
                source.names.push(Name { module, line, path, kind });
            }
        }
        source
    }

    /// Takes in the modules of one file, and of those that it declares.
    fn file(
        &mut self,
        files: &BTreeMap<PathBuf, String>,
        file: &Path,
        module: Vec<String>,
        bodies: &mut Vec<(Vec<String>, Vec<Item>)>,
    ) {
        let text = files.get(file).unwrap_or_else(|| panic!("{}: no such file", file.display()));
        let parsed = syn::parse_file(text).unwrap_or_else(|error| {
            panic!("{}:{}: {error}", file.display(), error.span().start().line);
        });
        self.module(files, file, module, parsed.items, bodies);
    }

    fn module(
        &mut self,
        files: &BTreeMap<PathBuf, String>,
        file: &Path,
        module: Vec<String>,
        items: Vec<Item>,
        bodies: &mut Vec<(Vec<String>, Vec<Item>)>,
    ) {
        let mut found = Module { file: file.to_owned(), ..Module::default() };
        let mut body = Vec::new();
        let mut inner = Vec::new();
        for item in items {
            if is_for_tests(attributes(&item)) {
                continue;
            }
            found.items.extend(defined(&item));
            match item {
                Item::Mod(item) => {
                    let name = item.ident.to_string();
                    found.children.insert(name.clone());
                    inner.push((name, item.content));
                }
                item => body.push(item),
            }
        }
        self.modules.insert(module.clone(), found);
        bodies.push((module.clone(), body));
        for (name, content) in inner {
            let path = [module.as_slice(), &[name]].concat();
            match content {
                Some((_, items)) => self.module(files, file, path, items, bodies),
                None => {
                    let beside = path.iter().collect::<PathBuf>().with_extension("rs");
                    let inside = path.iter().collect::<PathBuf>().join("mod.rs");
                    let file = if files.contains_key(&beside) { beside } else { inside };
                    self.file(files, &file, path, bodies);
                }
            }
        }
    }

    /// Takes in one leaf of a `use`.
    fn add_use(&mut self, Use { module, line, path, alias, re_export }: Use) {
        let Some(path) = self.absolute(&module, &path, false) else { return };
        if let Some(found) = self.modules.get_mut(&module) {
            match alias {
                Some(alias) => {
                    found.imports.insert(alias, path.clone());
                }
                None if re_export => found.globs.push(path[..path.len() - 1].to_vec()),
                None => {}
            }
        }
        let kind = if re_export { Kind::ReExport } else { Kind::Plain };
        self.names.push(Name { module, line, path, kind });
    }

    /// A path of `module` from the crate's root on; `None`: it leads elsewhere, or is local. `imports`: it
    /// may begin with what a `use` brought in.
    fn absolute(&self, module: &[String], path: &[String], imports: bool) -> Option<Vec<String>> {
        let (first, rest) = path.split_first()?;
        let found = self.modules.get(module)?;
        match first.as_str() {
            "crate" => Some(rest.to_vec()),
            "self" => self.climb(module, rest),
            "super" => self.climb(module, path),
            name if found.children.contains(name) => Some([module, path].concat()),
            name if imports => Some([found.imports.get(name)?.as_slice(), rest].concat()),
            _ => None,
        }
    }

    fn climb(&self, module: &[String], path: &[String]) -> Option<Vec<String>> {
        match path.split_first() {
            Some((first, rest)) if first == "super" => self.climb(module.split_last()?.1, rest),
            _ => Some([module, path].concat()),
        }
    }

    /// How many names of the crate itself stand in it: a check that saw none has seen nothing.
    #[must_use]
    pub fn names(&self) -> usize {
        self.names.len()
    }

    /// What `floors` does not allow, in the order of files and lines. `lib.rs` may name everything.
    #[must_use]
    pub fn check_layers(&self, floors: &[(impl AsRef<str>, u32)]) -> Vec<Violation> {
        let floors: BTreeMap<&str, u32> = floors
            .iter()
            .map(|(name, floor)| (name.as_ref(), *floor))
            .filter(|(name, _)| *name != "lib")
            .collect();
        let empty = BTreeSet::new();
        let root = self.modules.get([].as_slice()).map_or(&empty, |root| &root.children);
        let mut violations = BTreeSet::new();
        for name in root.iter().filter(|name| !floors.contains_key(name.as_str())) {
            let file = self.modules.get([name.clone()].as_slice()).map(|module| module.file.clone());
            let problem = format!("`{name}` has no floor in the table");
            violations.insert(Violation { file: file.unwrap_or_default(), line: 0, problem });
        }
        for name in floors.keys().filter(|name| !root.contains(**name)) {
            let problem = format!("the table has a floor for `{name}`, which is no module");
            violations.insert(Violation { file: "lib.rs".into(), line: 0, problem });
        }
        for name in self.names.iter().filter(|name| name.kind != Kind::Imported) {
            let Some(own) = name.module.first() else { continue };
            let path = name.path.join("::");
            let target = name.path.first().filter(|target| root.contains(*target));
            let problem = match target {
                Some(target) if target == own => continue,
                Some(target) => match (floors.get(own.as_str()), floors.get(target.as_str())) {
                    (Some(floor), Some(below)) if below >= floor => format!(
                        "names `crate::{path}`: `{own}` is on floor {floor}, `{target}` on floor {below}, \
                         which is not below"
                    ),
                    _ => continue,
                },
                None => format!("names `crate::{path}` through lib.rs, which is for users"),
            };
            let file = self.modules.get(&name.module).map(|module| module.file.clone()).unwrap_or_default();
            violations.insert(Violation { file, line: name.line, problem });
        }
        violations.into_iter().collect()
    }

    /// The files of the largest circle of imports, in order; none if no file needs itself by way of another.
    ///
    /// A file needs the one that defines what it names: a re-export is looked through, and is no need of the
    /// file it stands in unless that uses the name itself.
    #[must_use]
    pub fn largest_circle(&self) -> Vec<PathBuf> {
        let mut needs: BTreeMap<&Path, BTreeSet<&Path>> = BTreeMap::new();
        for name in &self.names {
            let Some(module) = self.modules.get(&name.module) else { continue };
            if name.kind == Kind::ReExport && !self.uses_itself(module, name) {
                continue;
            }
            if let Some(target) = self.definition(&name.path, 0)
                && target != module.file
            {
                needs.entry(&module.file).or_default().insert(target);
            }
        }
        let reached = |from: &Path| {
            let mut reached = BTreeSet::new();
            let mut left: Vec<&Path> = needs.get(from).into_iter().flatten().copied().collect();
            while let Some(file) = left.pop() {
                if reached.insert(file) {
                    left.extend(needs.get(file).into_iter().flatten());
                }
            }
            reached
        };
        let reached: BTreeMap<&Path, BTreeSet<&Path>> =
            needs.keys().map(|file| (*file, reached(file))).collect();
        let circle = |file: &Path| -> Vec<PathBuf> {
            let others = reached.get(file).into_iter().flatten();
            let back =
                others.filter(|other| reached.get(**other).is_some_and(|others| others.contains(file)));
            back.map(|other| other.to_path_buf()).collect()
        };
        needs.keys().map(|file| circle(file)).max_by_key(Vec::len).unwrap_or_default()
    }

    /// True if the module that re-exports `name` also uses it.
    fn uses_itself(&self, module: &Module, name: &Name) -> bool {
        match name.path.split_last() {
            Some((last, of)) if last == "*" => {
                let items = self.modules.get(of).map(|of| &of.items);
                items.into_iter().flatten().any(|item| module.idents.contains(item))
            }
            Some((last, _)) => module.idents.contains(last),
            None => false,
        }
    }

    /// The file that defines what `path` names. `None` for a module as such: only what is named of it counts.
    fn definition(&self, path: &[String], depth: u32) -> Option<&Path> {
        let modules = (0..=path.len()).rev().map(|len| &path[..len]);
        let (len, module) = modules.filter_map(|path| Some((path.len(), self.modules.get(path)?))).next()?;
        let item = path.get(len)?;
        if module.items.contains(item) || depth > 16 {
            return Some(&module.file);
        }
        if let Some(target) = module.imports.get(item) {
            let path = [target.as_slice(), &path[len + 1..]].concat();
            return self.definition(&path, depth + 1);
        }
        let globs = module.globs.iter().filter_map(|glob| {
            let known = self.modules.get(glob)?;
            (known.items.contains(item) || known.imports.contains_key(item)).then_some(glob)
        });
        match globs.into_iter().next() {
            Some(glob) => self.definition(&[glob.as_slice(), &path[len..]].concat(), depth + 1),
            None => Some(&module.file),
        }
    }
}

/// A leaf of a `use`.
struct Use {
    module: Vec<String>,
    line: usize,
    path: Vec<String>,
    /// Its name in the module; `None` for a glob.
    alias: Option<String>,
    re_export: bool,
}

/// Collects what the items of one module name.
struct Reader<'a> {
    module: &'a [String],
    uses: Vec<Use>,
    /// Paths of two segments or more, with their lines.
    paths: Vec<(usize, Vec<String>)>,
    idents: BTreeSet<String>,
}

impl<'a> Reader<'a> {
    fn new(module: &'a [String]) -> Self {
        Self { module, uses: Vec::new(), paths: Vec::new(), idents: BTreeSet::new() }
    }

    fn tree(&mut self, tree: &UseTree, before: &[String], re_export: bool) {
        let join = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        let mut leaf = |ident: &syn::Ident, alias: Option<&syn::Ident>| {
            // `use a::{self}` is `use a`.
            let path = if ident == "self" { before.to_vec() } else { join(ident) };
            let alias = alias.map(ToString::to_string).or_else(|| path.last().cloned());
            let line = ident.span().start().line;
            self.uses.push(Use { module: self.module.to_vec(), line, path, alias, re_export });
        };
        match tree {
            UseTree::Path(path) => self.tree(&path.tree, &join(&path.ident), re_export),
            UseTree::Name(name) => leaf(&name.ident, None),
            UseTree::Rename(rename) => leaf(&rename.ident, Some(&rename.rename)),
            UseTree::Glob(glob) => {
                let line = glob.star_token.spans[0].start().line;
                let path = [before, &["*".to_owned()]].concat();
                self.uses.push(Use { module: self.module.to_vec(), line, path, alias: None, re_export });
            }
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.tree(tree, before, re_export)),
        }
    }

    /// The paths in the tokens of a macro, which have no syntax that is known here.
    fn tokens(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let is_colons = |at: usize| {
            let colon =
                |token: Option<&TokenTree>| matches!(token, Some(TokenTree::Punct(p)) if p.as_char() == ':');
            colon(tokens.get(at)) && colon(tokens.get(at + 1))
        };
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            at += 1;
            match token {
                TokenTree::Ident(ident) if ident == "use" => {
                    let rest = tokens[at - 1..].iter();
                    let end =
                        rest.take_while(|token| !matches!(token, TokenTree::Punct(p) if p.as_char() == ';'));
                    let end = at + end.count();
                    let item: TokenStream =
                        tokens.get(at - 1..end).unwrap_or_default().iter().cloned().collect();
                    if let Ok(item) = syn::parse2::<ItemUse>(item) {
                        self.visit_item_use(&item);
                        at = end;
                    }
                }
                TokenTree::Ident(ident) => {
                    let line = ident.span().start().line;
                    let mut path = vec![ident.to_string()];
                    while is_colons(at)
                        && let Some(TokenTree::Ident(next)) = tokens.get(at + 2)
                    {
                        path.push(next.to_string());
                        at += 3;
                    }
                    self.path(line, path);
                }
                // The name of an item of another crate, or of a type in angle brackets.
                TokenTree::Punct(_) if is_colons(at - 1) => at += 2,
                TokenTree::Group(group) => self.tokens(group.stream()),
                TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
        }
    }

    fn path(&mut self, line: usize, path: Vec<String>) {
        self.idents.extend(path.first().cloned());
        if path.len() > 1 {
            self.paths.push((line, path));
        }
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        if !is_for_tests(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item(&mut self, item: &'ast syn::ImplItem) {
        let attributes = match item {
            syn::ImplItem::Const(item) => &item.attrs,
            syn::ImplItem::Fn(item) => &item.attrs,
            syn::ImplItem::Type(item) => &item.attrs,
            syn::ImplItem::Macro(item) => &item.attrs,
            _ => return visit::visit_impl_item(self, item),
        };
        if !is_for_tests(attributes) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        if !is_for_tests(&field.attrs) {
            visit::visit_field(self, field);
        }
    }

    fn visit_local(&mut self, local: &'ast syn::Local) {
        if !is_for_tests(&local.attrs) {
            visit::visit_local(self, local);
        }
    }

    fn visit_expr_block(&mut self, block: &'ast syn::ExprBlock) {
        if !is_for_tests(&block.attrs) {
            visit::visit_expr_block(self, block);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        if item.leading_colon.is_none() {
            let re_export = !matches!(item.vis, Visibility::Inherited);
            self.tree(&item.tree, &[], re_export);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none()
            && let Some(first) = path.segments.first()
        {
            let names = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
            self.path(first.ident.span().start().line, names);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, found: &'ast syn::Macro) {
        self.visit_path(&found.path);
        self.tokens(found.tokens.clone());
    }

    // Doc comments, and attributes, whose paths are no imports.
    fn visit_attribute(&mut self, _: &'ast Attribute) {}
}

/// True if the attributes say that something is there in tests only.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    let test_of = |attribute: &Attribute| {
        let mut found = false;
        let parsed = attribute.parse_nested_meta(|meta| {
            if meta.path.is_ident("test") {
                found = true;
            } else if meta.path.is_ident("all") {
                meta.parse_nested_meta(|meta| {
                    found |= meta.path.is_ident("test");
                    meta.input.parse::<TokenStream>().map(drop)
                })?;
            } else {
                meta.input.parse::<TokenStream>()?;
            }
            Ok(())
        });
        parsed.is_ok() && found
    };
    attributes.iter().any(|attribute| attribute.path().is_ident("cfg") && test_of(attribute))
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::TraitAlias(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// The name that an item defines in its module.
fn defined(item: &Item) -> Option<String> {
    let ident = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::TraitAlias(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(ident.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIB: &str = "mod low; mod middle; mod beside; mod high; pub use high::Top; pub use low::Low;";
    const FLOORS: [(&str, u32); 4] = [("low", 1), ("middle", 2), ("beside", 2), ("high", 3)];

    /// A crate of four modules; `middle` is a folder with `deep.rs`, which holds `deep`.
    fn source(deep: &str) -> Source {
        let files = [
            ("lib.rs", LIB),
            ("low.rs", "pub struct Low; pub mod inner { pub struct Inner; }"),
            ("middle/mod.rs", "mod deep; pub(crate) use deep::Deep; pub struct Middle;"),
            ("middle/deep.rs", deep),
            ("beside.rs", "pub struct Beside;"),
            ("high.rs", "use crate::middle::{Deep, Middle}; pub struct Top(Deep, Middle);"),
        ];
        Source::of(&files.iter().map(|(name, text)| (PathBuf::from(name), (*text).to_owned())).collect())
    }

    fn problems(deep: &str) -> Vec<String> {
        let violations = source(&format!("pub struct Deep;\n{deep}")).check_layers(&FLOORS);
        violations.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_of_lower_floors_and_of_the_own_folder_pass() {
        let deep = "use crate::low::{self, inner::Inner, Low};
            use super::Middle;
            use std::sync::Arc;
            fn f(_: Arc<crate::low::Low>) -> crate::middle::Middle { low::Low; self::g() }
            fn g() { super::super::low::Low; }";
        assert_eq!(problems(deep), Vec::<String>::new());
        let source = source(deep);
        // One in high.rs for each of two names, one re-export, lib.rs's two, and what stands above.
        assert!(source.names() >= 12, "{}", source.names());
    }

    #[test]
    fn an_upward_import_fails_with_its_file_line_and_floors() {
        let expected = "middle/deep.rs:2: names `crate::high::Top`: `middle` is on floor 2, \
                        `high` on floor 3, which is not below";
        assert_eq!(problems("use crate::high::Top;"), [expected]);
        assert_eq!(problems("use super::super::high::Top;"), [expected]);
    }

    #[test]
    fn every_form_of_a_path_is_read() {
        for upward in [
            "use crate::{low::Low, high::{self, Top}};",
            "use crate::{high as tall};",
            "use crate::high::*;",
            "fn f() { crate::high::Top; }",
            "fn f() { use crate::high::Top; }",
            "fn f(_: Option<crate::high::Top>) {}",
            "fn f() -> <crate::high::Top as Iterator>::Item {}",
            "impl crate::high::Trait for Deep {}",
            "struct S { top: crate::high::Top }",
            "fn f() { println!(\"{}\", crate::high::TOP); }",
            "fn f() { select! { x = y => { use crate::{high::Top}; } } }",
            "macro_rules! m { () => { $crate::high::Top } }",
            "mod inner { use super::super::super::high::Top; }",
            "fn f() { #[cfg(not(test))] let top = crate::high::Top; }",
            "fn f() { match 1 { crate::high::ONE => {} _ => {} } }",
        ] {
            assert!(problems(upward).iter().any(|problem| problem.contains("high")), "{upward}");
        }
    }

    #[test]
    fn modules_of_one_floor_do_not_name_each_other() {
        assert_eq!(problems("use crate::beside::Beside;").len(), 1);
    }

    #[test]
    fn an_item_through_lib_rs_fails_even_if_its_own_floor_is_lower() {
        let expected = "middle/deep.rs:2: names `crate::Low` through lib.rs, which is for users";
        assert_eq!(problems("use crate::Low;"), [expected]);
        assert_eq!(problems("use crate::*;").len(), 1);
        assert_eq!(problems("use super::super::Low;"), [expected]);
    }

    #[test]
    fn comments_and_tests_are_not_read() {
        for passes in [
            "// use crate::high::Top;",
            "/* crate::high::Top */",
            "/// See [`crate::high::Top`].\nstruct S;",
            "fn f() { \"crate::high::Top\"; }",
            "#[cfg(test)] mod tests { use crate::high::Top; }",
            "#[cfg(all(test, unix))] use crate::high::Top;",
            "#[cfg(test)] mod no_such_file;",
            "impl Deep { #[cfg(test)] fn f() { crate::high::Top; } }",
            "struct S { #[cfg(test)] top: crate::high::Top }",
            "fn f() { #[cfg(test)] { crate::high::Top; } #[cfg(test)] let top = crate::high::Top; }",
        ] {
            assert_eq!(problems(passes), Vec::<String>::new(), "{passes}");
        }
    }

    #[test]
    fn the_table_and_the_source_have_the_same_modules() {
        let source = source("pub struct Deep;");
        let problems = |floors: &[(&str, u32)]| {
            source.check_layers(floors).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(problems(&FLOORS[..3]), ["high.rs:0: `high` has no floor in the table"]);
        let more = [FLOORS.as_slice(), &[("gone", 4), ("lib", 9)]].concat();
        assert_eq!(problems(&more), ["lib.rs:0: the table has a floor for `gone`, which is no module"]);
    }

    #[test]
    fn a_circle_is_found_through_re_exports_and_imported_modules() {
        assert_eq!(source("pub struct Deep;").largest_circle(), Vec::<PathBuf>::new());
        // high.rs needs middle/deep.rs, which middle/mod.rs only passes on.
        let circle = ["high.rs", "middle/deep.rs"].map(PathBuf::from);
        assert_eq!(source("pub struct Deep; use crate::Top;").largest_circle(), circle);
        assert_eq!(
            source("pub struct Deep; use crate::high; fn f() { high::Top; }").largest_circle(),
            circle
        );
        assert!(source("pub struct Deep; use super::Middle;").largest_circle().is_empty());
    }

    #[test]
    fn a_module_that_uses_what_it_re_exports_is_part_of_a_circle() {
        let files = |body: &str| {
            let files = [
                ("lib.rs", "mod folder;".to_owned()),
                ("folder/mod.rs", format!("mod file; pub(crate) use file::File; pub struct Folder; {body}")),
                ("folder/file.rs", "use super::Folder; pub struct File(Folder);".to_owned()),
            ];
            Source::of(&files.map(|(name, text)| (PathBuf::from(name), text)).into())
        };
        assert!(files("").largest_circle().is_empty());
        assert_eq!(files("fn f(_: File) {}").largest_circle().len(), 2);
    }

    #[test]
    fn floors_are_read_from_the_page_that_shows_them() {
        let page = "# Page\n\n### Floors of other\n\n| floor | what |\n|---|---|\n| 1 | `x/` |\n\n\
                    ### Floors of mine\n\ntext\n\n| floor | folder | rule |\n|---|---|---|\n\
                    | 1 | `base/` | knows `nothing` |\n| 2 | `cache/`, `state.rs` | above |\n\n\
                    ## Next\n| 3 | `no/` |\n";
        let floors = [("base", 1), ("cache", 2), ("state", 2)].map(|(name, floor)| (name.to_owned(), floor));
        assert_eq!(floors_in(page, "mine"), floors);
    }
}
