#ifndef COX_REWARD_LEXICON_H_
#define COX_REWARD_LEXICON_H_

// Sentiment of a text by a word list and a few rules: the known "gold" reward
// of the built-in example, and the labeller of its comparisons.
//
// The method is that of Hutto and Gilbert, "VADER: A Parsimonious Rule-based
// Model for Sentiment Analysis of Social Media Text", ICWSM 2014; the word
// list is theirs (examples/data/lexicon/).

#include <cstddef>
#include <string>
#include <string_view>
#include <unordered_map>

#include "lib/base/fs.h"
#include "lib/base/status.h"

namespace cox {

// Score of a text: sum s of the valences of its words (each -4..4) after the
// rules below, then s / sqrt(s^2 + 15), in [-1, 1]; 0 without sentiment words.
//   ALL-CAPS word in a mixed-case text   0.733 further from zero
//   booster or dampener up to 3 words    0.293 further from or nearer to zero,
//     before                               x0.95, x0.9 at distance 2, 3
//   negation up to 3 words before        x -0.74 ("never so" x1.25)
//   "least" just before                  x -0.74, but not after "at", "very"
//   "but"                                x0.5 before it, x1.5 after it
//   '!' 0.292 each, up to 4; '?' 0.18 each for 2 or 3, 0.96 for more: in the
//     direction of s
// Costs about 0.1 us per byte. Immutable and thread-safe.
class LexiconScorer {
 public:
  // `lexicon`: lines "word<TAB>mean valence"; '#' starts a comment line.
  // INVALID_ARGUMENT "line n: ..." for anything else and for no entries.
  static absl::StatusOr<LexiconScorer> FromText(std::string_view lexicon);
  // As FromText, with the path in messages; NOT_FOUND.
  static absl::StatusOr<LexiconScorer> FromFile(Fs& fs,
                                                const std::string& path);

  // In [-1, 1]. Any bytes are accepted.
  double Score(std::string_view text) const;

  size_t size() const { return valence_.size(); }
  // SHA-256 of the lexicon's bytes: part of the reward's identity.
  const std::string& hash() const { return hash_; }

 private:
  LexiconScorer() = default;

  std::unordered_map<std::string, double> valence_;
  std::string hash_;
};

}  // namespace cox

#endif  // COX_REWARD_LEXICON_H_
