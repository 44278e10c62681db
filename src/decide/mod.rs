//! The answers. Facts go in, a verdict comes out; each question has the file of its name.
//!
//! | question | file |
//! | --- | --- |
//! | Does the L2 head grow, has it stopped, or is neither proved? | [`liveness`] |
//! | What of the verified chain does the node still hold? | [`local_chain`] |
//! | Is this commit the one that the event speaks of, and does it continue the chain of batches? | [`binding`] |
//! | Is what the blob holds a sequence of blocks that the calldata allows? | [`content`] |
//! | Consistent, self-heal, fill-gap or wait? | [`dispatch`] |
//! | Which local blocks may stay, which are written? | [`reconcile`] |
//! | Are the node that is read and the node that is written one node? | [`one_node`] |
//! | The node refused a block: for good, or for now? | [`refusal`] |
//! | How fast does the node write, and how much is sent to it at once? | [`speed`] |
//! | Which execution client is it, and what may be expected of it? | [`client`] |
//! | Are the roots those of the calldata? | [`roots`] |
//! | May this head move, and which tags does the node lack? | [`heads`] |
//! | Does L1 still hold this commit? | [`standing`] |
//! | What has become final? | [`finality`] |
//! | Does L1 confirm a revert or a proof that is stored? | [`settlement`] |
//! | Where does the next L1 range begin and end, and did L1 reorganise? | [`cursor`] |
//! | Do the logs of an L1 range lie on one chain that builds on what is recorded? | [`range`] |
//! | Which batches does L1 hold again after a reorg? | [`rebind`] |
//! | Does reading on at once still get anywhere? | [`pace`] |
//! | Which of several endpoints is asked, and how long is a faulty one left alone? | [`endpoints`] |
//! | How fast does a worker that is behind get on? | [`catch_up`] |
//! | Must a batch that could not be passed be judged again? | [`recheck`] |
//! | Is a pause of the reactors over? | [`aftermath`] |
//! | May a reply of a follow source be believed, and what follows from it for our heads? | [`follow`] |
//! | What would `recover` write, replace and lose? | [`recovery`] |
//! | What does an audit do next, and do the reports of its ranges join? | [`audit`] |
//! | Why is the worker stalled? | [`stall`], its codes in [`reason`] |
//!
//! No async, no clock, no log, no node: times and heights are arguments.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::as_conversions)]
#![cfg_attr(test, allow(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

pub mod aftermath;
pub mod audit;
pub mod binding;
pub mod catch_up;
pub mod client;
pub mod content;
pub mod cursor;
pub mod dispatch;
pub mod endpoints;
pub mod finality;
pub mod follow;
pub mod heads;
pub mod liveness;
pub mod local_chain;
pub mod one_node;
pub mod pace;
pub mod range;
pub mod reason;
pub mod rebind;
pub mod recheck;
pub mod reconcile;
pub mod recovery;
pub mod refusal;
pub mod roots;
pub mod settlement;
pub mod speed;
pub mod stall;
pub mod standing;
