//! Locks, conditions and threads that a simulation can hold up. Outside one they are the things
//! themselves.
//!
//! **Invariant:** a simulated thread never blocks in the machine: what it cannot have now it asks the
//! scheduler for, by the address of what it waits for.

use std::io;
use std::ops::{Deref, DerefMut};
use std::thread::Thread;
use std::time::Duration;

use super::scheduler::{self, Waits};

fn key<T: ?Sized>(of: &T) -> usize {
    std::ptr::from_ref(of).cast::<()>() as usize
}

/// Takes a lock as the simulation allows.
fn acquire<G>(
    key: usize,
    deadline_us: Option<u64>,
    mut take: impl FnMut() -> Option<G>,
) -> Option<G> {
    scheduler::before_lock();
    loop {
        if let Some(guard) = take() {
            return Some(guard);
        }
        let woken = scheduler::block(key, deadline_us, Waits::Lock);
        if !woken && deadline_us.is_some() {
            return take();
        }
    }
}

/// As parking_lot's.
#[derive(Debug, Default)]
pub struct Mutex<T: ?Sized>(parking_lot::Mutex<T>);

/// As parking_lot's.
pub struct MutexGuard<'a, T: ?Sized> {
    mutex: &'a Mutex<T>,
    /// `None` only while a condition is waited for.
    held: Option<parking_lot::MutexGuard<'a, T>>,
}

impl<T> Mutex<T> {
    pub const fn new(value: T) -> Self {
        Self(parking_lot::Mutex::new(value))
    }
}

impl<T: ?Sized> Mutex<T> {
    pub fn lock(&self) -> MutexGuard<'_, T> {
        let held = match scheduler::is_simulated() {
            true => acquire(key(&self.0), None, || self.0.try_lock()),
            false => Some(self.0.lock()),
        };
        MutexGuard { mutex: self, held }
    }

    pub fn try_lock_for(&self, timeout: Duration) -> Option<MutexGuard<'_, T>> {
        let held = match scheduler::is_simulated() {
            true => acquire(key(&self.0), Some(scheduler::after(timeout)), || self.0.try_lock()),
            false => self.0.try_lock_for(timeout),
        };
        held.map(|held| MutexGuard { mutex: self, held: Some(held) })
    }

    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut()
    }
}

impl<T: ?Sized> MutexGuard<'_, T> {
    fn let_go(&mut self) {
        self.held = None;
        scheduler::wake_lock(key(&self.mutex.0));
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.held.as_ref().expect("held but for waits, which borrow the guard")
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.held.as_mut().expect("held but for waits, which borrow the guard")
    }
}

impl<T: ?Sized> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// As parking_lot's.
#[derive(Debug, Default)]
pub struct RwLock<T: ?Sized>(parking_lot::RwLock<T>);

/// Either guard of a [`RwLock`]: `G` is parking_lot's.
pub struct RwLockGuard<G> {
    key: usize,
    held: Option<G>,
}

impl<T> RwLock<T> {
    pub const fn new(value: T) -> Self {
        Self(parking_lot::RwLock::new(value))
    }
}

impl<T: ?Sized> RwLock<T> {
    pub fn read(&self) -> RwLockGuard<parking_lot::RwLockReadGuard<'_, T>> {
        let key = key(&self.0);
        let held = match scheduler::is_simulated() {
            true => acquire(key, None, || self.0.try_read()),
            false => Some(self.0.read()),
        };
        RwLockGuard { key, held }
    }

    pub fn write(&self) -> RwLockGuard<parking_lot::RwLockWriteGuard<'_, T>> {
        let key = key(&self.0);
        let held = match scheduler::is_simulated() {
            true => acquire(key, None, || self.0.try_write()),
            false => Some(self.0.write()),
        };
        RwLockGuard { key, held }
    }

    pub fn try_write(&self) -> Option<RwLockGuard<parking_lot::RwLockWriteGuard<'_, T>>> {
        scheduler::before_lock();
        let held = self.0.try_write()?;
        Some(RwLockGuard { key: key(&self.0), held: Some(held) })
    }

    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut()
    }
}

impl<G: Deref> Deref for RwLockGuard<G> {
    type Target = G::Target;

    fn deref(&self) -> &G::Target {
        self.held.as_ref().expect("held until it is dropped")
    }
}

impl<G: DerefMut> DerefMut for RwLockGuard<G> {
    fn deref_mut(&mut self) -> &mut G::Target {
        self.held.as_mut().expect("held until it is dropped")
    }
}

impl<G> Drop for RwLockGuard<G> {
    fn drop(&mut self) {
        self.held = None;
        scheduler::wake_lock(self.key);
    }
}

/// As parking_lot's; waits do not say why they ended.
#[derive(Debug, Default)]
pub struct Condvar(parking_lot::Condvar);

impl Condvar {
    pub const fn new() -> Self {
        Self(parking_lot::Condvar::new())
    }

    pub fn notify_one(&self) {
        match scheduler::is_simulated() {
            true => scheduler::notify(key(&self.0), false),
            false => drop(self.0.notify_one()),
        }
    }

    pub fn notify_all(&self) {
        match scheduler::is_simulated() {
            true => scheduler::notify(key(&self.0), true),
            false => drop(self.0.notify_all()),
        }
    }

    pub fn wait<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>) {
        self.wait_until(guard, None);
    }

    pub fn wait_for<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>, timeout: Duration) {
        self.wait_until(guard, Some(timeout));
    }

    pub fn wait_while_for<T: ?Sized>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        mut condition: impl FnMut(&mut T) -> bool,
        timeout: Duration,
    ) {
        if !scheduler::is_simulated() {
            if let Some(held) = &mut guard.held {
                self.0.wait_while_for(held, condition, timeout);
            }
            return;
        }
        let deadline = scheduler::after(timeout);
        while condition(guard) && scheduler::after(Duration::ZERO) < deadline {
            self.simulated_wait(guard, Some(deadline));
        }
    }

    fn wait_until<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>, timeout: Option<Duration>) {
        if scheduler::is_simulated() {
            return self.simulated_wait(guard, timeout.map(scheduler::after));
        }
        match (&mut guard.held, timeout) {
            (Some(held), None) => self.0.wait(held),
            (Some(held), Some(timeout)) => drop(self.0.wait_for(held, timeout)),
            (None, _) => {}
        }
    }

    /// Between letting go and waiting no other thread runs, so no notice is missed.
    fn simulated_wait<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>, deadline_us: Option<u64>) {
        guard.let_go();
        scheduler::block(key(&self.0), deadline_us, Waits::Condition);
        let mutex = &guard.mutex.0;
        guard.held = acquire(key(mutex), None, || mutex.try_lock());
    }
}

/// As std's.
pub struct JoinHandle<T>(Kind<T>);

enum Kind<T> {
    Real(std::thread::JoinHandle<T>),
    Simulated(usize, Thread),
}

impl JoinHandle<()> {
    pub fn join(self) -> std::thread::Result<()> {
        match self.0 {
            Kind::Real(thread) => thread.join(),
            Kind::Simulated(id, _) => {
                scheduler::join(id);
                Ok(())
            }
        }
    }

    pub fn is_finished(&self) -> bool {
        match &self.0 {
            Kind::Real(thread) => thread.is_finished(),
            Kind::Simulated(id, _) => scheduler::is_finished(*id),
        }
    }

    pub fn thread(&self) -> &Thread {
        match &self.0 {
            Kind::Real(thread) => thread.thread(),
            Kind::Simulated(_, thread) => thread,
        }
    }
}

pub fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    if !scheduler::is_simulated() {
        let thread = std::thread::Builder::new().name(name).spawn(body)?;
        return Ok(JoinHandle(Kind::Real(thread)));
    }
    let (id, thread) = scheduler::spawn(name, Box::new(body))?;
    Ok(JoinHandle(Kind::Simulated(id, thread)))
}
