/** Values that the graphs of a vision encoder hand out and take: each has one name in all of them. */

// The prefix keeps these names apart from those of the file.

/** What the tower hands out: the features of the file, float32. */
export const FEATURES = 'desap.features';
/** The hidden states that enter the last block, float32, [B, N, D] or [N, D] as the file has them. */
export const HIDDEN = 'desap.hidden';
/** Where queries and keys are rotated: the tables of all rows, float32 [rows, dh] each. */
export const COS = 'desap.cos';
export const SIN = 'desap.sin';
/** Where the encoder works in an order of its own: int64 [M]; feature i is visual token `order[i]` of that order. */
export const ORDER = 'desap.order';
/** Where features have columns of earlier blocks beside them: those of the last block, float32 [M, W']. */
export const MAIN_FEATURES = 'desap.main_features';
/** Input of the connector: rows with the dims of the hidden states, float32. */
export const ROWS = 'desap.rows';
/** Output of the connector: float32 [M, W'] (or [.., M, W'], as the features are), in the order of the features. */
export const TASK_ROWS = 'desap.task_rows';
/** The last attention behind its output projection, float32, with the dims of the hidden states: what the trial hands out and the tail takes. */
export const ATTENTION = 'desap.attention';
/** The sum that ends the block, float32: what the trial and the tail hand out, and rows for the connector. */
export const BLOCK_OUTPUT = 'desap.block_output';
