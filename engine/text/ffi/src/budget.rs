//! A bound on the memory of a piece of work: the global allocator counts what a thread with a budget holds.
//!
//! An allocator may neither unwind nor, without the process ending, fail. So who asks for more than its budget never gets an
//! answer: its thread sleeps for good, with what it holds, and the caller goes on with an error. That is a leak, of the
//! budget's size at most; a caller must see to it that it does not happen again and again.

use std::alloc::{GlobalAlloc, Layout, System};
use std::any::Any;
use std::cell::Cell;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering};
use std::sync::Arc;
use std::thread::{self, Builder, Thread};

struct Budget {
    left: AtomicIsize, // bytes
    exceeded: AtomicBool,
    done: AtomicBool,
    caller: Thread,
}

thread_local! {
    // Of the work that runs on this thread; null: no bound. Needs neither an allocation nor a destructor.
    static BUDGET: Cell<*const Budget> = const { Cell::new(ptr::null()) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

impl Counting {
    fn take(&self, bytes: usize) {
        let budget = BUDGET.get();
        if budget.is_null() {
            return;
        }
        // Safety: the thread that set it holds the budget until it has set it back.
        let budget = unsafe { &*budget };
        let bytes = isize::try_from(bytes).unwrap_or(isize::MAX);
        if budget.left.fetch_sub(bytes, Ordering::Relaxed) < bytes {
            BUDGET.set(ptr::null());
            budget.exceeded.store(true, Ordering::Release);
            budget.caller.unpark();
            loop {
                thread::park();
            }
        }
    }

    fn give_back(&self, bytes: usize) {
        let budget = BUDGET.get();
        if !budget.is_null() {
            // Safety: as above.
            unsafe { &*budget }.left.fetch_add(bytes as isize, Ordering::Relaxed);
        }
    }
}

// Safety: all memory is the system's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.take(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.take(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        self.give_back(layout.size());
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.take(size); // both at once, while it is copied
        let moved = unsafe { System.realloc(memory, layout, size) };
        self.give_back(layout.size());
        moved
    }
}

pub enum Failure {
    Memory,
    Panic(Box<dyn Any + Send>),
    NoThread(std::io::Error),
}

/// Runs `work` on a thread of its own with so many bytes of stack, of which only what is touched costs memory, and of heap.
pub fn run<T: Send + 'static>(
    stack: usize,
    heap: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let budget = Arc::new(Budget {
        left: AtomicIsize::new(heap as isize),
        exceeded: AtomicBool::new(false),
        done: AtomicBool::new(false),
        caller: thread::current(),
    });
    let theirs = budget.clone();
    let worker = Builder::new()
        .stack_size(stack)
        .spawn(move || {
            BUDGET.set(Arc::as_ptr(&theirs));
            let result = catch_unwind(AssertUnwindSafe(work));
            BUDGET.set(ptr::null());
            theirs.done.store(true, Ordering::Release);
            theirs.caller.unpark();
            result
        })
        .map_err(Failure::NoThread)?;
    while !budget.done.load(Ordering::Acquire) {
        if budget.exceeded.load(Ordering::Acquire) {
            return Err(Failure::Memory);
        }
        thread::park();
    }
    worker.join().and_then(|result| result).map_err(Failure::Panic)
}
