//! Whether rules may ask for the mark of a flow. A kernel without xt_connmark refuses them, and all that is written with
//! them; the tools do not say why.

/// What was learnt of that.
#[derive(Default)]
pub(super) struct Closing {
    /// First writes that were refused: two with such rules (each make of iptables has its turn), two without, and so on.
    refused: u32,
    /// The next write tells whether such rules were what stood in the way.
    trial: bool,
}

impl Closing {
    pub(super) fn possible(&self) -> bool {
        self.refused & 2 == 0
    }

    /// A write was refused; `first`: nothing was ever written.
    pub(super) fn refused(&mut self, first: bool) {
        if std::mem::take(&mut self.trial) {
            self.refused = 2;
            tracing::warn!(
                "flows that policy denies later are deleted, and may begin anew from their other end: the kernel takes no \
                 rules about marks of flows (xt_connmark)"
            );
        } else if first {
            self.refused = self.refused.wrapping_add(1);
        }
    }

    /// A write went well. `true`: it was the first, and without such rules; another one has to try them once more.
    pub(super) fn written(&mut self, first: bool) -> bool {
        self.trial = first && !self.possible();
        if self.trial {
            self.refused = 0;
        }
        self.trial
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_about_marks_are_left_out_only_where_they_are_what_is_refused() {
        let mut c = Closing::default();
        assert!(c.possible() && !c.written(true));
        // Something else stood in the way.
        let mut c = Closing::default();
        c.refused(true);
        assert!(c.possible(), "the other make of iptables has its turn");
        c.refused(true);
        assert!(!c.possible() && c.written(true));
        assert!(c.possible() && !c.written(false) && c.possible());
        c.refused(false);
        assert!(c.possible(), "what is refused later has other reasons");
        // They do.
        let mut c = Closing::default();
        c.refused(true);
        c.refused(true);
        assert!(c.written(true) && c.possible());
        c.refused(false);
        assert!(!c.possible() && !c.written(false) && !c.possible());
    }
}
