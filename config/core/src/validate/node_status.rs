//! CalicoNodeStatus.

use super::Errors;
use crate::node_status::{AGENT, BGP, CalicoNodeStatusSpec, LONGEST_PERIOD, ROUTES};

pub(super) fn check(s: &CalicoNodeStatusSpec, errors: &mut Errors) {
    if s.node.is_empty() {
        errors.add("spec.node", "", "is required: the node that is asked");
    }
    for (i, class) in s.classes.iter().enumerate() {
        errors.one_of(&format!("spec.classes[{i}]"), Some(class), &[AGENT, BGP, ROUTES]);
    }
    if let Some(period) = s.update_period_seconds.filter(|p| *p > LONGEST_PERIOD) {
        errors.add("spec.updatePeriodSeconds", period, format!("expected 0 (once) to {LONGEST_PERIOD}"));
    }
}
