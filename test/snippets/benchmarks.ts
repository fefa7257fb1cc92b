/** A question of each benchmark in the form in which it is distributed, and one of a converted file. */
const ANSWERS = Array.from({ length: 10 }, (_, id) => ({ answer: 'red', answer_confidence: 'yes', answer_id: id + 1 }));
const VQA = { image_id: 262148, question_id: 262148000 };

const QUESTION = { image: 'photo.png', question: 'is there a star ?', answer: 'yes', scoring: 'yes-no' };
const POPE = { question_id: 1, image: 'photo.png', text: 'Is there a star in the image?', label: 'yes' };
const GQA = { '1': { imageId: 'photo', question: 'Is there a star?', answer: 'yes', types: { structural: 'verify' } } };
const TEXTVQA = {
  dataset_type: 'val',
  data: [{ question_id: 1, image_id: 'photo', question: 'what is written?', answers: Array(10).fill('stop') }],
};
const QUESTIONS = { data_subtype: 'val2014', questions: [{ ...VQA, question: 'What color is the star?' }] };
const ANNOTATIONS = { data_subtype: 'val2014', annotations: [{ ...VQA, answer_type: 'other', answers: ANSWERS }] };

/** By the file's name. */
export const BENCHMARKS: Readonly<Record<string, unknown>> = {
  'pope.jsonl': QUESTION,
  'questions.jsonl': QUESTION,
  'coco_pope_adversarial.json': POPE,
  'testdev_balanced_questions.json': GQA,
  'TextVQA_0.5.1_val.json': TEXTVQA,
  'v2_OpenEnded_mscoco_val2014_questions.json': QUESTIONS,
  'v2_mscoco_val2014_annotations.json': ANNOTATIONS,
};
