//! Extent trees on file systems that mke2fs made: against a model, to the last block, with few credits and
//! with damage; judged by e2fsck and debugfs.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use ext4_core::device::MemoryDevice;
use ext4_core::environment::FixedEnvironment;
use ext4_core::format::inode::{FileType, Inode};
use ext4_core::meta::block_allocator::{AllocationRequest, allocate_blocks, free_blocks};
use ext4_core::meta::extent_tree::{
    self, Conversion, Mapping, MappingState, Removal, Shift, convert_step, convert_to_unwritten,
    convert_to_written, shift_left, shift_right, split_at,
};
use ext4_core::meta::transaction::OnCommit;
use ext4_core::meta::{
    Buffer, DirectTransaction, SuperblockInfo, Transaction, credits, directory, inode_allocator, inode_table,
};
use ext4_core::{BlockNumber, Errno, InodeNumber, LogicalBlock, Result, Timestamp, TransactionId};
use ext4_test_support::loop_device::KernelMount;
use ext4_test_support::tools::{assert_clean, mke2fs_content, run_if_there};
use parking_lot::Mutex;
use proptest::prelude::*;

const NOW: Timestamp = Timestamp { seconds: 1_700_000_000, nanoseconds: 0 };

/// A transaction that counts: each block changed for the first time costs a credit, and there are no more
/// than those that were granted. It may or may not let itself be extended.
struct Counting {
    inner: DirectTransaction,
    extendable: bool,
    state: Mutex<(u32, BTreeSet<BlockNumber>)>,
}

impl Counting {
    fn new(info: &SuperblockInfo, credits: u32, extendable: bool) -> Self {
        let inner = DirectTransaction::new(Arc::clone(&info.cache));
        Self { inner, extendable, state: Mutex::new((credits, BTreeSet::new())) }
    }
}

#[async_trait]
impl Transaction for Counting {
    fn id(&self) -> TransactionId {
        self.inner.id()
    }

    fn get_write_access(&self, buffer: &Buffer) -> Result<()> {
        self.inner.get_write_access(buffer)
    }

    fn get_create_access(&self, buffer: &Buffer) -> Result<()> {
        self.inner.get_create_access(buffer)
    }

    fn dirty_metadata(&self, buffer: &Buffer) -> Result<()> {
        let mut state = self.state.lock();
        if state.1.insert(buffer.block()) {
            state.0 = state.0.checked_sub(1).expect("no more blocks are changed than there are credits");
        }
        self.inner.dirty_metadata(buffer)
    }

    fn forget(&self, block: BlockNumber, buffer: Option<&Buffer>) -> Result<()> {
        self.inner.forget(block, buffer)
    }

    fn credits(&self) -> u32 {
        self.state.lock().0
    }

    fn extend(&self, credits: u32) -> Result<bool> {
        if self.extendable {
            self.state.lock().0 += credits;
        }
        Ok(self.extendable)
    }

    fn on_commit(&self, callback: OnCommit) {
        self.inner.on_commit(callback);
    }
}

struct Bench {
    device: Arc<MemoryDevice>,
    info: Arc<SuperblockInfo>,
    transaction: DirectTransaction,
    inode: Inode,
}

impl Bench {
    /// A file without blocks in a file system; `size` in blocks.
    async fn new(content: Vec<u8>, size: u32) -> Self {
        let device = Arc::new(MemoryDevice::from_content(content));
        let (info, transaction) = open(&device).await;
        let root = InodeNumber::ROOT;
        let number = inode_allocator::allocate_inode(&info, &transaction, root, false).await.unwrap();
        let mut inode = info.new_inode(number, 0o100_644, NOW);
        inode.links_count = 1;
        inode.generation = 0xdead_beef;
        extent_tree::initialize(&mut inode);
        inode.size = LogicalBlock(size).byte(info.block_size());
        let mut parent = inode_table::read_inode(&info, root).await.unwrap();
        directory::add(&info, &transaction, &mut parent, b"file", number, FileType::Regular).await.unwrap();
        inode_table::write_inode(&info, &transaction, &parent).await.unwrap();
        let bench = Self { device, info, transaction, inode };
        bench.log().await;
        bench
    }

    async fn log(&self) {
        inode_table::write_inode(&self.info, &self.transaction, &self.inode).await.unwrap();
    }

    /// Writes everything to the device.
    async fn close(&self) {
        self.log().await;
        self.info.store_free_counts(&self.transaction).await.unwrap();
        self.info.cache.write_dirty().await.unwrap();
    }

    async fn check(&self, what: &str) {
        self.close().await;
        assert_clean(&self.device.content(), what);
    }

    async fn allocate(&self, len: u32) -> Option<(BlockNumber, u32)> {
        self.allocate_at(None, len, false).await
    }

    async fn allocate_at(
        &self,
        goal: Option<BlockNumber>,
        len: u32,
        metadata: bool,
    ) -> Option<(BlockNumber, u32)> {
        let inode = self.inode.number;
        let request = AllocationRequest { goal, inode, len, reserved: false, metadata };
        match allocate_blocks(&self.info, &self.transaction, &request).await {
            Ok(run) => Some(run),
            Err(error) => {
                assert_eq!(error.errno(), Errno::ENOSPC);
                None
            }
        }
    }

    async fn insert(&mut self, logical: u32, physical: BlockNumber, len: u32, unwritten: bool) -> Result<()> {
        let (info, inode) = (&self.info, &mut self.inode);
        extent_tree::insert(info, &self.transaction, inode, LogicalBlock(logical), physical, len, unwritten)
            .await
    }

    async fn remove(&mut self, first: u32, last: u32) {
        let (first, last) = (LogicalBlock(first), LogicalBlock(last));
        let done = extent_tree::remove(&self.info, &self.transaction, &mut self.inode, first, last).await;
        assert_eq!(done.unwrap(), Removal::Done);
    }

    async fn mapping(&self, logical: u32) -> Mapping {
        extent_tree::lookup(&self.info, &self.inode, LogicalBlock(logical)).await.unwrap()
    }

    async fn extents(&self) -> Vec<(u32, u32, u64, bool)> {
        let mut found = Vec::new();
        let mut from = LogicalBlock(0);
        while let Some(e) = extent_tree::next_extent(&self.info, &self.inode, from).await.unwrap() {
            found.push((e.logical.0, e.len, e.physical.0, e.unwritten));
            from = e.end();
        }
        found
    }

    /// The whole tree is what the model says, and the inode counts its blocks.
    async fn compare(&self, model: &Model) {
        let mut blocks = BTreeMap::new();
        for (logical, len, physical, unwritten) in self.extents().await {
            for n in 0..len {
                blocks.insert(logical + n, (physical + u64::from(n), unwritten));
            }
        }
        assert!(blocks == *model, "tree and model differ");
        let nodes = extent_tree::node_blocks(&self.info, &self.inode).await.unwrap();
        let sectors = (nodes.len() + blocks.len()) as u64 * self.info.block_size().sectors();
        assert_eq!(self.inode.sectors, sectors);
    }
}

async fn open(device: &Arc<MemoryDevice>) -> (Arc<SuperblockInfo>, DirectTransaction) {
    let environment = Arc::new(FixedEnvironment::new(NOW, 7));
    let info = SuperblockInfo::load(Arc::clone(device) as _, 16 << 20, environment, false).await.unwrap();
    let transaction = DirectTransaction::new(Arc::clone(&info.cache));
    (info, transaction)
}

/// Logical block to (physical block, unwritten).
type Model = BTreeMap<u32, (u64, bool)>;

#[derive(Clone, Debug)]
enum Action {
    Insert { logical: u32, len: u32, unwritten: bool },
    Alternate { logical: u32, count: u32, backwards: bool, unwritten: bool },
    Convert { logical: u32, len: u32, unwritten: bool },
    Remove { logical: u32, len: u32 },
    Collapse { logical: u32, len: u32 },
    MakeRoom { logical: u32, len: u32 },
}

const SPAN: u32 = 6000;

fn action() -> impl Strategy<Value = Action> {
    let unwritten = any::<bool>();
    prop_oneof![
        4 => (0..SPAN, 1..60_u32, unwritten)
            .prop_map(|(logical, len, unwritten)| Action::Insert { logical, len, unwritten }),
        1 => (0..SPAN, 1..700_u32, any::<bool>(), unwritten).prop_map(
            |(logical, count, backwards, unwritten)| {
                Action::Alternate { logical, count, backwards, unwritten }
            }
        ),
        4 => (0..SPAN, 1..300_u32, unwritten)
            .prop_map(|(logical, len, unwritten)| Action::Convert { logical, len, unwritten }),
        2 => (0..SPAN, 1..400_u32).prop_map(|(logical, len)| Action::Remove { logical, len }),
        1 => (0..SPAN).prop_map(|logical| Action::Remove { logical, len: SPAN }),
        1 => (0..SPAN, 1..300_u32).prop_map(|(logical, len)| Action::Collapse { logical, len }),
        1 => (0..SPAN, 1..300_u32).prop_map(|(logical, len)| Action::MakeRoom { logical, len }),
    ]
}

/// Inserts as much of the range as is a hole, from its start on.
async fn insert_hole(bench: &mut Bench, model: &mut Model, logical: u32, len: u32, unwritten: bool) {
    let Some(start) = (logical..logical + len).find(|block| !model.contains_key(block)) else { return };
    let hole = (start..logical + len).take_while(|block| !model.contains_key(block)).count() as u32;
    let Some((physical, count)) = bench.allocate(hole).await else { return };
    bench.insert(start, physical, count, unwritten).await.unwrap();
    for n in 0..count {
        model.insert(start + n, (physical.0 + u64::from(n), unwritten));
    }
}

async fn carry_out(bench: &mut Bench, model: &mut Model, action: &Action) {
    match *action {
        Action::Insert { logical, len, unwritten } => {
            insert_hole(bench, model, logical, len, unwritten).await;
        }
        Action::Alternate { logical, count, backwards, unwritten } => {
            for n in 0..count {
                let n = if backwards { count - 1 - n } else { n };
                insert_hole(bench, model, logical + 2 * n, 1, unwritten).await;
            }
        }
        Action::Convert { logical, len, unwritten } => {
            let start = LogicalBlock(logical);
            let Bench { info, transaction, inode, .. } = bench;
            if unwritten {
                convert_to_unwritten(info, transaction, inode, start, len).await.unwrap();
            } else {
                convert_to_written(info, transaction, inode, start, len).await.unwrap();
            }
            for (_, block) in model.range_mut(logical..logical + len) {
                block.1 = unwritten;
            }
        }
        Action::Remove { logical, len } => {
            bench.remove(logical, logical + len - 1).await;
            model.retain(|block, _| *block < logical || *block >= logical + len);
        }
        Action::Collapse { logical, len } => {
            bench.remove(logical, logical + len - 1).await;
            let Bench { info, transaction, inode, .. } = bench;
            let from = LogicalBlock(logical + len);
            assert_eq!(shift_left(info, transaction, inode, from, len).await.unwrap(), Shift::Done);
            model.retain(|block, _| *block < logical || *block >= logical + len);
            let moved = model.split_off(&logical);
            model.extend(moved.into_iter().map(|(block, what)| (block - len, what)));
        }
        Action::MakeRoom { logical, len } => {
            let Bench { info, transaction, inode, .. } = bench;
            let (start, end) = (LogicalBlock(logical), LogicalBlock(u32::MAX));
            split_at(info, transaction, inode, start).await.unwrap();
            let moved = shift_right(info, transaction, inode, start, end, len).await.unwrap();
            assert_eq!(moved, Shift::Done);
            let moved = model.split_off(&logical);
            model.extend(moved.into_iter().map(|(block, what)| (block + len, what)));
        }
    }
}

static SMALL: LazyLock<Option<Vec<u8>>> =
    LazyLock::new(|| mke2fs_content("16M", &["-b", "1024", "-O", "^has_journal"]));

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_actions_leave_what_the_model_says(actions in proptest::collection::vec(action(), 1..60)) {
        let Some(content) = SMALL.clone() else { return Ok(()) };
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let mut bench = Bench::new(content, 3 * SPAN).await;
            let mut model = Model::new();
            for action in &actions {
                carry_out(&mut bench, &mut model, action).await;
                bench.compare(&model).await;
            }
            for logical in (0..2 * SPAN).step_by(17) {
                let mapping = bench.mapping(logical).await;
                let expected = match model.get(&logical) {
                    None => MappingState::Hole,
                    Some((block, true)) => MappingState::Unwritten(BlockNumber(*block)),
                    Some((block, false)) => MappingState::Written(BlockNumber(*block)),
                };
                assert_eq!(mapping.state, expected);
                if mapping.state == MappingState::Hole {
                    let next = model.range(logical..).next().map_or(u32::MAX, |(next, _)| *next);
                    assert_eq!(logical + mapping.len, next);
                }
            }
            bench.check("after random actions").await;
            let content = bench.device.content();
            compare_with_debugfs(&content, &bench).await;
            bench.remove(0, u32::MAX).await;
            assert_eq!((bench.inode.sectors, bench.extents().await.len()), (0, 0));
            bench.check("after removing everything").await;
        });
    }
}

/// debugfs lists the same extents.
async fn compare_with_debugfs(content: &[u8], bench: &Bench) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    std::fs::write(&path, content).unwrap();
    let request = format!("extents <{}>", bench.inode.number);
    let Some(text) = run_if_there(Command::new("debugfs").args(["-R", &request]).arg(&path)) else { return };
    let mut found = Vec::new();
    // Level, entries, logical range, physical range, length, flags: " 1/ 2 3/ 84 5 - 6 99 - 100 2 Uninit".
    for line in text.lines().skip(1) {
        let flat = line.replace(['/', '-'], " ");
        let numbers: Vec<u64> = flat.split_whitespace().map_while(|word| word.parse().ok()).collect();
        if let [level, depth, _, _, logical, _, physical, _, len] = numbers[..]
            && level == depth
        {
            found.push((logical as u32, len as u32, physical, line.contains("Uninit")));
        }
    }
    assert_eq!(found, bench.extents().await);
}

#[tokio::test]
async fn a_hundred_thousand_extents_go_in_and_out() {
    const COUNT: u32 = 100_000;
    let Some(content) = mke2fs_content("160M", &["-b", "1024", "-O", "^has_journal"]) else { return };
    for shuffled in [false, true] {
        let mut bench = Bench::new(content.clone(), 2 * COUNT).await;
        let mut physical = Vec::new();
        while let Some((first, len)) = bench.allocate(COUNT - physical.len() as u32).await {
            physical.extend((0..u64::from(len)).map(|n| first.offset(n)));
            if physical.len() == COUNT as usize {
                break;
            }
        }
        let mut order: Vec<u32> = (0..COUNT).collect();
        if shuffled {
            fastrand::Rng::with_seed(3).shuffle(&mut order);
        }
        let start = std::time::Instant::now();
        for n in &order {
            bench.insert(2 * n, physical[*n as usize], 1, true).await.unwrap();
        }
        let inserted = start.elapsed();
        bench.check("a hundred thousand extents").await;
        let nodes = extent_tree::node_blocks(&bench.info, &bench.inode).await.unwrap().len();
        if !shuffled {
            // Filled front to back, leaves are full: 84 extents in each, 83 leaves under each index node.
            assert!(nodes as u32 <= COUNT.div_ceil(84) + 30, "{nodes} nodes");
        }
        let start = std::time::Instant::now();
        for n in &order {
            let Bench { info, transaction, inode, .. } = &mut bench;
            convert_to_written(info, transaction, inode, LogicalBlock(2 * n), 1).await.unwrap();
        }
        let converted = start.elapsed();
        let start = std::time::Instant::now();
        for n in (0..COUNT).rev() {
            let mapping = bench.mapping(2 * n).await;
            assert_eq!(mapping.state, MappingState::Written(physical[n as usize]));
        }
        let looked_up = start.elapsed();
        let start = std::time::Instant::now();
        bench.remove(0, u32::MAX).await;
        println!(
            "{COUNT} extents, shuffled {shuffled}: {nodes} nodes, insert {inserted:?}, \
             convert {converted:?}, look up {looked_up:?}, remove {:?}",
            start.elapsed()
        );
        assert_eq!(bench.inode.sectors, 0);
        bench.check("empty again").await;
    }
}

#[tokio::test]
async fn long_extents_merge_up_to_their_limits() {
    let Some(content) = mke2fs_content("400M", &["-b", "4096", "-O", "^has_journal"]) else { return };
    let mut bench = Bench::new(content, 140_000).await;
    let mut at = 0;
    while at < 65_000 {
        let (first, len) = bench.allocate(10_000).await.unwrap();
        bench.insert(at, first, len, true).await.unwrap();
        at += len;
    }
    let longest = bench.extents().await.iter().map(|extent| extent.1).max().unwrap();
    assert!(longest <= 32_767);
    // Converting everything and back: written extents may be one block longer.
    let Bench { info, transaction, inode, .. } = &mut bench;
    convert_to_written(info, transaction, inode, LogicalBlock(0), at).await.unwrap();
    assert!(bench.extents().await.iter().all(|extent| !extent.3 && extent.1 <= 32_768));
    let Bench { info, transaction, inode, .. } = &mut bench;
    convert_to_unwritten(info, transaction, inode, LogicalBlock(5), at - 10).await.unwrap();
    bench.check("long extents").await;
    // One of exactly 32,768 blocks becomes two.
    bench.remove(0, u32::MAX).await;
    // The third group has no copy of the superblock and, with flex_bg, nothing else either.
    let (first, len) = bench.allocate_at(Some(BlockNumber(65_536)), 32_768, false).await.unwrap();
    assert_eq!(len, 32_768);
    bench.insert(7, first, len, false).await.unwrap();
    assert_eq!(bench.extents().await.len(), 1);
    let Bench { info, transaction, inode, .. } = &mut bench;
    convert_to_unwritten(info, transaction, inode, LogicalBlock(7), len).await.unwrap();
    assert_eq!(bench.extents().await.iter().map(|extent| extent.1).collect::<Vec<_>>(), [32_767, 1]);
    assert!(bench.insert(7 + len, first, 32_768, true).await.is_err());
    bench.check("one long extent").await;
}

#[tokio::test]
async fn what_is_mapped_cannot_be_mapped_again() {
    let Some(content) = SMALL.clone() else { return };
    let mut bench = Bench::new(content, 1000).await;
    let (first, len) = bench.allocate(10).await.unwrap();
    bench.insert(10, first, len, false).await.unwrap();
    let before = bench.inode.clone();
    for (logical, count) in [(9, 2), (10, 1), (19, 1), (0, 1000)] {
        assert!(bench.insert(logical, first, count, false).await.unwrap_err().is_corrupt());
    }
    assert_eq!(bench.insert(u32::MAX - 1, first, 2, false).await.unwrap_err().errno(), Errno::EFBIG);
    assert_eq!(bench.inode, before);
    let last = bench.mapping(u32::MAX - 1).await;
    assert_eq!((last.len, last.state), (1, MappingState::Hole));
    assert!(extent_tree::lookup(&bench.info, &bench.inode, LogicalBlock(u32::MAX)).await.is_err());
}

#[tokio::test]
async fn no_space_for_a_node_leaves_the_tree_as_it_was() {
    let Some(content) = mke2fs_content("8M", &["-b", "1024", "-O", "^has_journal", "-m", "0"]) else {
        return;
    };
    let mut bench = Bench::new(content, 100_000).await;
    bench.info.allow_root_blocks(true);
    // Take every block but the ones for extents, then those too.
    let mut mine = Vec::new();
    for _ in 0..400 {
        mine.extend(bench.allocate(1).await);
    }
    let mut hoard = Vec::new();
    let mut refusals = 0;
    for n in 0..mine.len() as u32 {
        while let Some(run) = bench.allocate_at(None, 1000, true).await {
            hoard.push(run);
        }
        let physical = mine[n as usize].0;
        loop {
            let before = bench.inode.clone();
            let free = bench.info.free_and_reserved_blocks();
            let Err(error) = bench.insert(2 * n, physical, 1, n % 3 == 0).await else { break };
            assert_eq!(error.errno(), Errno::ENOSPC);
            assert_eq!(bench.inode, before);
            assert_eq!(bench.extents().await.len() as u32, n);
            assert_eq!(bench.info.free_and_reserved_blocks(), free);
            refusals += 1;
            // One block back: enough for a leaf, not always for a deeper tree.
            let (first, len) = hoard.pop().unwrap();
            free_blocks(&bench.info, &bench.transaction, first, 1, false).await.unwrap();
            if len > 1 {
                hoard.push((first.offset(1), len - 1));
            }
        }
    }
    assert!(refusals == 6, "{refusals}");
    for (first, len) in hoard {
        free_blocks(&bench.info, &bench.transaction, first, u64::from(len), false).await.unwrap();
    }
    bench.check("after being full").await;
}

#[tokio::test]
async fn credits_are_enough_for_insertion_and_conversion() {
    let Some(content) = SMALL.clone() else { return };
    let mut bench = Bench::new(content, 20_000).await;
    let mut random = fastrand::Rng::with_seed(11);
    let mut most = 0;
    let (mut inserted, mut refused) = (0, 0);
    for _ in 0..3000 {
        let logical = random.u32(0..20_000);
        let (physical, len) = bench.allocate(random.u32(1..4)).await.expect("the device is large enough");
        let counting = Counting::new(&bench.info, credits::EXTENT, false);
        let (info, inode) = (&bench.info, &mut bench.inode);
        let logical = LogicalBlock(logical);
        match extent_tree::insert(info, &counting, inode, logical, physical, len, true).await {
            Ok(()) => inserted += 1,
            // A block of the range is mapped already.
            Err(error) => {
                assert!(error.is_corrupt(), "{error}");
                free_blocks(info, &counting, physical, u64::from(len), false).await.unwrap();
                refused += 1;
            }
        }
        let from = LogicalBlock(random.u32(0..20_000));
        most = most.max(credits::EXTENT - counting.credits());
        let counting = Counting::new(info, credits::EXTENT, false);
        convert_to_written(info, &counting, inode, from, random.u32(1..5)).await.unwrap();
        most = most.max(credits::EXTENT - counting.credits());
    }
    println!("{most} of {} credits used: {inserted} inserted, {refused} refused", credits::EXTENT);
    assert!(inserted > 2000 && refused > 100, "{inserted} inserted, {refused} refused");
    assert!(most > 1, "{most} credits used");
    bench.check("with counted credits").await;
}

/// Many leaves, few credits: every stop leaves a whole tree with a hole as long as the way somewhere in it.
#[tokio::test]
async fn shifts_stop_where_credits_end_and_go_on_after() {
    let Some(content) = mke2fs_content("16M", &["-b", "1024", "-O", "^has_journal"]) else { return };
    let mut bench = Bench::new(content, 40_000).await;
    for n in 0..2000 {
        let (physical, _) = bench.allocate(1).await.unwrap();
        bench.insert(3 * n, physical, 1, n % 2 == 0).await.unwrap();
    }
    let before = bench.extents().await;
    let by = 1234;
    let (start, mut limit, mut rounds) = (LogicalBlock(300), LogicalBlock(u32::MAX), 0);
    loop {
        let counting = Counting::new(&bench.info, 12, false);
        let inode = &mut bench.inode;
        let moved = shift_right(&bench.info, &counting, inode, start, limit, by).await.unwrap();
        rounds += 1;
        match moved {
            Shift::Done => break,
            Shift::More(next) => limit = next,
        }
        let expected: Vec<_> =
            before.iter().map(|e| if e.0 < limit.0 { *e } else { (e.0 + by, e.1, e.2, e.3) }).collect();
        assert!(bench.extents().await == expected, "up to {limit}");
        bench.check("between two rounds").await;
    }
    assert!(rounds > 2, "{rounds}");
    let mut from = LogicalBlock(start.0 + by);
    loop {
        let counting = Counting::new(&bench.info, 12, false);
        match shift_left(&bench.info, &counting, &mut bench.inode, from, by).await.unwrap() {
            Shift::Done => break,
            Shift::More(next) => from = next,
        }
        bench.check("between two rounds").await;
    }
    assert!(bench.extents().await == before);
    // Neither over what is mapped nor over the end of all files.
    let Bench { info, transaction, inode, .. } = &mut bench;
    let (end, huge) = (LogicalBlock(u32::MAX), u32::MAX - 5000);
    let over = shift_right(info, transaction, inode, start, end, huge).await.unwrap_err();
    assert_eq!(over.errno(), Errno::EFBIG);
    let over = shift_left(info, transaction, inode, LogicalBlock(600), 10).await.unwrap_err();
    assert_eq!(over.errno(), Errno::EINVAL);
    assert!(bench.extents().await == before);
    bench.check("after many rounds").await;
}

#[tokio::test]
async fn removal_and_conversion_stop_where_credits_end_and_go_on_after() {
    let Some(content) = mke2fs_content("64M", &["-b", "1024", "-O", "^has_journal", "-g", "1024"]) else {
        return;
    };
    for extendable in [false, true] {
        let mut bench = Bench::new(content.clone(), 20_000).await;
        let mut random = fastrand::Rng::with_seed(5);
        let mut blocks = Vec::new();
        for _ in 0..3000 {
            // All over the groups.
            let goal = BlockNumber(random.u64(1..bench.info.blocks_count()));
            blocks.extend(bench.allocate_at(Some(goal), 1, false).await);
        }
        for (n, (physical, _)) in blocks.iter().enumerate() {
            bench.insert(3 * n as u32, *physical, 1, true).await.unwrap();
        }
        let mut rounds = 0;
        loop {
            let counting = Counting::new(&bench.info, credits::FREE_STEP, extendable);
            let range = (LogicalBlock(0), 9000);
            let conversion = Conversion::ToWritten;
            let inode = &mut bench.inode;
            let done = convert_step(&bench.info, &counting, inode, range.0, range.1, conversion).await;
            rounds += 1;
            if done.unwrap() == Removal::Done {
                break;
            }
        }
        assert_eq!(rounds > 1, !extendable);
        assert!(bench.extents().await.iter().all(|extent| !extent.3));
        let mut left = bench.extents().await.len();
        let mut rounds = 0;
        loop {
            let counting = Counting::new(&bench.info, credits::FREE_STEP, extendable);
            let range = (LogicalBlock(100), LogicalBlock(8000));
            let done = extent_tree::remove(&bench.info, &counting, &mut bench.inode, range.0, range.1)
                .await
                .unwrap();
            rounds += 1;
            if done == Removal::Done {
                break;
            }
            let now = bench.extents().await.len();
            assert!(now < left, "every round frees something");
            left = now;
            if rounds % 50 == 0 {
                bench.check("between two rounds").await;
            }
        }
        assert_eq!(rounds > 1, !extendable);
        bench.check("after many rounds").await;
    }
}

#[tokio::test]
async fn damage_ends_in_an_error_and_never_in_a_loop() {
    // Without checksums, so that the damage is looked at.
    let options = ["-b", "1024", "-O", "^has_journal,^metadata_csum,^uninit_bg"];
    let Some(content) = mke2fs_content("16M", &options) else { return };
    let mut bench = Bench::new(content, 30_000).await;
    let mut random = fastrand::Rng::with_seed(9);
    for n in 0..8000 {
        let (physical, _) = bench.allocate(1).await.unwrap();
        bench.insert(3 * n, physical, 1, n % 5 == 0).await.unwrap();
    }
    bench.close().await;
    let nodes = extent_tree::node_blocks(&bench.info, &bench.inode).await.unwrap();
    let good = bench.device.content();
    let mut errors = 0;
    for _ in 0..200 {
        let mut content = good.clone();
        for _ in 0..random.u32(1..4) {
            let node = nodes[random.usize(..nodes.len().min(40))].0 as usize * 1024;
            let other = nodes[random.usize(..nodes.len())].0 as usize * 1024;
            match random.u8(0..4) {
                // A header or an early entry.
                0 => content[node + random.usize(0..64)] ^= 1 << random.u8(0..8),
                1 => content[node + random.usize(0..1024)] = random.u8(..),
                // A good node in the wrong place.
                2 => content.copy_within(other..other + 1024, node),
                _ => content[node..node + 1024].fill(0),
            }
        }
        let device = Arc::new(MemoryDevice::from_content(content));
        let (info, transaction) = open(&device).await;
        let mut inode = bench.inode.clone();
        if random.u8(0..4) == 0 {
            inode.i_block[random.usize(0..60)] ^= 1 << random.u8(0..8);
        }
        let mut failed = extent_tree::node_blocks(&info, &inode).await.is_err();
        for _ in 0..50 {
            let logical = LogicalBlock(random.u32(0..25_000));
            match extent_tree::lookup(&info, &inode, logical).await {
                Ok(mapping) => match mapping.state {
                    MappingState::Hole => assert!(mapping.len > 0),
                    MappingState::Written(block) | MappingState::Unwritten(block) => {
                        assert!(info.is_data_range(block, u64::from(mapping.len)));
                    }
                },
                Err(error) => {
                    assert!(error.is_corrupt(), "{error}");
                    failed = true;
                }
            }
            let _ = extent_tree::allocation_goal(&info, &inode, logical).await;
        }
        let mut from = LogicalBlock(0);
        let mut steps = 0;
        while let Ok(Some(extent)) = extent_tree::next_extent(&info, &inode, from).await {
            assert!(extent.end() > from);
            from = extent.end();
            steps += 1;
            assert!(steps < 100_000);
        }
        let last = LogicalBlock(u32::MAX);
        let _ = convert_to_written(&info, &transaction, &mut inode, LogicalBlock(0), 30_000).await;
        failed |= extent_tree::remove(&info, &transaction, &mut inode, LogicalBlock(0), last).await.is_err();
        errors += u32::from(failed);
    }
    assert!(errors > 150, "{errors} of 200");
}

#[tokio::test]
async fn a_node_of_another_inode_is_refused_by_its_checksum() {
    let Some(content) = SMALL.clone() else { return };
    let mut bench = Bench::new(content, 30_000).await;
    for n in 0..10 {
        let (physical, _) = bench.allocate(1).await.unwrap();
        bench.insert(3 * n, physical, 1, false).await.unwrap();
    }
    bench.close().await;
    let (info, _) = open(&bench.device).await;
    let mut other = bench.inode.clone();
    other.generation += 1;
    let error = extent_tree::lookup(&info, &other, LogicalBlock(0)).await.unwrap_err();
    assert!(error.to_string().contains("checksum"), "{error}");
    let nodes = extent_tree::node_blocks(&info, &bench.inode).await.unwrap();
    assert_eq!(nodes.len(), 1);
}

#[tokio::test]
async fn the_kernel_reads_and_changes_a_tree_of_ours() {
    let Some(content) = SMALL.clone() else { return };
    let mut bench = Bench::new(content, 12_000).await;
    let mut random = fastrand::Rng::with_seed(21);
    let mut model = Model::new();
    // Two levels below the root, with pieces missing and in both states.
    for n in 0..40 {
        let logical = 200 * random.u32(0..40);
        let (unwritten, backwards) = (n % 2 == 0, n % 3 == 0);
        carry_out(&mut bench, &mut model, &Action::Alternate { logical, count: 100, backwards, unwritten })
            .await;
        let (logical, len) = (random.u32(0..9000), 50);
        carry_out(&mut bench, &mut model, &Action::Convert { logical, len, unwritten: !unwritten }).await;
        carry_out(&mut bench, &mut model, &Action::Remove { logical: random.u32(0..9000), len: 20 }).await;
    }
    assert!(extent_tree::node_blocks(&bench.info, &bench.inode).await.unwrap().len() > 20);
    bench.check("before the kernel").await;
    let mut content = bench.device.content();
    let at = |block: u64| block as usize * 1024..(block as usize + 1) * 1024;
    for (logical, (block, _)) in &model {
        content[at(*block)].copy_from_slice(&logical.to_le_bytes().repeat(256));
    }
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    std::fs::write(&image, content).unwrap();
    let Some(mounted) = KernelMount::if_possible(&image) else { return };
    let path = mounted.path("file");
    let seen = std::fs::read(&path).unwrap();
    for logical in 0..12_000 {
        let expected = match model.get(&logical) {
            Some((_, false)) => logical,
            _ => 0,
        };
        assert_eq!(seen[at(u64::from(logical))], expected.to_le_bytes().repeat(256), "block {logical}");
    }
    for arguments in [
        ["-p", "-o", "1000K", "-l", "777K"],
        ["-z", "-o", "3000K", "-l", "500K"],
        ["-x", "-o", "5001K", "-l", "900K"],
    ] {
        run_if_there(Command::new("fallocate").args(arguments).arg(&path));
    }
    run_if_there(Command::new("truncate").args(["-s", "7654321"]).arg(&path));
    let seen = std::fs::read(&path).unwrap();
    drop(mounted);
    // What the kernel made of it, read by us; then removed by us.
    let content = std::fs::read(&image).unwrap();
    assert_clean(&content, "after the kernel");
    bench.device = Arc::new(MemoryDevice::from_content(content.clone()));
    (bench.info, bench.transaction) = open(&bench.device).await;
    bench.inode = inode_table::read_inode(&bench.info, bench.inode.number).await.unwrap();
    let mut ours = vec![0; seen.len().next_multiple_of(1024)];
    for (logical, len, physical, unwritten) in bench.extents().await {
        for n in 0..u64::from(len) {
            if !unwritten && let Some(to) = ours.get_mut(at(u64::from(logical) + n)) {
                to.copy_from_slice(&content[at(physical + n)]);
            }
        }
    }
    assert!(ours[..seen.len()] == seen);
    bench.remove(4000, 6000).await;
    bench.check("punched by us").await;
    bench.remove(0, u32::MAX).await;
    bench.check("emptied by us").await;
}
