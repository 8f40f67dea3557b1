//! What a member of a group gets when it asks.

use super::*;
use crate::speaker::Multipath;
use crate::wire::{RouteRefresh, end_of_rib, refresh};

impl Groups {
    /// Appends UPDATEs for a neighbor: about `limit` octets, at least one message if any waits.
    pub(in super::super) fn pull<P: Prefix>(
        &mut self,
        table: &Table<P>,
        peer: PeerId,
        limit: usize,
        packer: &mut Packer,
        cx: &mut OutCx<'_>,
        buf: &mut BytesMut,
    ) {
        let start = buf.len();
        let limit = limit.max(1);
        while buf.len() - start < limit {
            let Some(Some(member)) = self.members.get_mut(peer.0 as usize) else { return };
            let number = member.group;
            let Some(group) = self.groups.get_mut(number) else { return };
            if member.refresh.answer == Answer::Due {
                member.refresh.answer = Answer::Begun;
                if member.refresh.marked {
                    RouteRefresh::of(P::FAMILY, refresh::BEGIN).append(buf);
                }
            }
            match &mut member.out {
                Out::Ring(at) => {
                    group.ring.read(at, peer, limit - (buf.len() - start), buf);
                    if *at < group.ring.end() {
                        continue;
                    }
                    if !group.pending.is_empty() {
                        group.flush(table, packer);
                        self.shed(table, number);
                        continue;
                    }
                }
                Out::Own(bits) => {
                    let room = limit - (buf.len() - start);
                    while packer.size() < room
                        && let Some(n) = bits.take()
                    {
                        let want = group.want(table, peer, n);
                        if want.is_some() || bits.told.contains(n) {
                            packer.add::<P>(want, n, 0, false);
                        }
                        bits.told.set(n, want.is_some());
                    }
                    packer.finish(table, &group.key.write, buf);
                    if !bits.dirty.is_empty() {
                        continue;
                    }
                }
                Out::Paths(paths) => {
                    let room = limit - (buf.len() - start);
                    while packer.size() < room
                        && let Some(n) = paths.bits.take()
                    {
                        let want = wanted(group, &mut self.ids, table.dest(n), peer, cx);
                        let again = member.again.remove(n);
                        paths.replace(n, want, again, &mut self.ids, |id, attrs, behind| {
                            packer.add::<P>(attrs, n, id, behind);
                        });
                    }
                    packer.finish(table, &group.key.write, buf);
                    if !paths.bits.dirty.is_empty() {
                        continue;
                    }
                }
            }
            if std::mem::take(&mut member.eor) {
                end_of_rib(P::FAMILY, buf);
            }
            let answered = std::mem::take(&mut member.refresh.answer) != Answer::None;
            if answered && member.refresh.marked {
                RouteRefresh::of(P::FAMILY, refresh::END).append(buf);
            }
            if std::mem::take(&mut member.refresh.again) {
                self.queue_again(table, peer);
                continue;
            }
            self.follow(table, peer, packer);
            return;
        }
    }

    /// A member that has caught up reads the ring from now on.
    fn follow<P: Prefix>(&mut self, table: &Table<P>, peer: PeerId, packer: &mut Packer) {
        let Some(Some(member)) = self.members.get_mut(peer.0 as usize) else { return };
        let (Out::Own(_), Some(group)) = (&member.out, self.groups.get_mut(member.group)) else { return };
        // It knows what the others do not know yet; that is not to be said to it again.
        if !group.pending.is_empty() {
            group.flush(table, packer);
        }
        if group.pending.is_empty() {
            group.others.retain(|p| *p != peer);
            group.followers.push(peer);
            member.out = Out::Ring(group.ring.end());
        }
    }

    /// The slowest readers leave a ring that has become too long.
    fn shed<P: Prefix>(&mut self, table: &Table<P>, number: usize) {
        while let Some(group) = self.groups.get(number).filter(|g| g.ring.octets() > RING_MAX) {
            let oldest = group.ring.start();
            let slow = group.followers.iter().copied().find(
                |p| matches!(self.member(*p), Some(Member { out: Out::Ring(at), .. }) if *at == oldest),
            );
            match slow {
                Some(peer) => self.own(table, peer),
                None => return,
            }
        }
    }
}

impl Group {
    /// Encodes some of what changed, for all followers.
    fn flush<P: Prefix>(&mut self, table: &Table<P>, packer: &mut Packer) {
        for (n, was) in self.pending.drain(..FLUSH_MAX.min(self.pending.len())) {
            self.is_pending.remove(n);
            let now = self.out.get(n as usize).and_then(Option::as_ref);
            let now = now.zip(self.key.owner(table.dest(n)));
            let before = was.as_ref().map(|(_, p)| *p);
            match (&was, now) {
                (None, None) => {}
                (Some((_, from)), None) => packer.share::<P>(None, To::Except(*from), n, before),
                (None, Some((attrs, from))) => packer.share::<P>(Some(attrs), To::Except(from), n, before),
                (Some((old, from)), Some((attrs, owner))) => {
                    let same = old == attrs;
                    if *from == owner {
                        if !same {
                            packer.share::<P>(Some(attrs), To::Except(owner), n, before);
                        }
                        continue;
                    }
                    // Whoever sends the best path now knew the one before; whoever sent that one knew none.
                    packer.share::<P>(None, To::Only(owner), n, before);
                    let to = if same { To::Only(*from) } else { To::Except(owner) };
                    packer.share::<P>(Some(attrs), to, n, before);
                }
            }
        }
        let (ring, readers) = (&mut self.ring, self.followers.len());
        packer.finish_shared(table, &self.key.write, |to, octets, dests| {
            ring.push(to, octets, dests, readers);
        });
    }
}

/// The paths a member with add-path should know, under identifiers held for it.
fn wanted<P: Prefix>(
    group: &mut Group,
    ids: &mut PathIds,
    dest: &Dest<P>,
    peer: PeerId,
    cx: &mut OutCx<'_>,
) -> Told {
    let Some(send) = group.key.add_path else { return Told::new() };
    if let Some(local_pref) = group.key.originates(dest.prefix) {
        let attrs = group.key.originated::<P>(local_pref, cx.interner);
        return attrs.map(|a| (ids.hold((LOCAL, 0)), a)).into_iter().collect();
    }
    let decision =
        DecisionCx { sources: cx.sources, next_hops: cx.next_hops, multipath: Multipath::up_to(1) };
    let mut told = Told::new();
    for path in chosen(&dest.paths, send, &decision) {
        if path.peer == peer {
            continue;
        }
        let candidate = Candidate {
            attrs: &path.attrs,
            peer: path.peer,
            source: cx.sources.get(path.peer),
            next_hops: cx.next_hops,
        };
        let attrs = group.key.export(dest.prefix, &candidate, cx.interner, &mut group.memo);
        told.extend(attrs.map(|a| (ids.hold((path.peer, path.path_id)), a)));
    }
    told
}
