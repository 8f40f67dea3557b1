//! Tests of the RIB: the decision process row by row and by law, queues and packing, the whole against a model.

mod add_path;
mod decision;
mod model;
mod queue;
