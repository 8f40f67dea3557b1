//! The one way bytes of a message are read and length fields are written. Nothing here knows BGP.

use bytes::BytesMut;

/// A shrinking view of received bytes. Every read is checked; `None` means the bytes ran out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) const fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What has not been read yet.
    pub(super) const fn rest(&self) -> &'a [u8] {
        self.0
    }

    pub(super) fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[b]| b)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// A field preceded by its length in one octet.
    pub(super) fn counted(&mut self) -> Option<&'a [u8]> {
        let n = self.u8()?;
        self.take(usize::from(n))
    }
}

/// Overwrites a field written earlier, once its value is known. `at` is a position the caller wrote to.
pub(super) fn patch<const N: usize>(buf: &mut BytesMut, at: usize, value: [u8; N]) {
    debug_assert!(at.saturating_add(N) <= buf.len(), "only what was written can be patched");
    if let Some(field) = buf.get_mut(at..at.saturating_add(N)) {
        field.copy_from_slice(&value);
    }
}
