#include "reward/lexicon.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <span>
#include <unordered_set>
#include <utility>
#include <vector>

#include "lib/base/hash.h"

namespace cox {
namespace {

// The constants of the paper (Hutto and Gilbert 2014, section 3.3) and of its
// published implementation.
constexpr double kBoost = 0.293;
constexpr double kCaps = 0.733;
constexpr double kNegation = -0.74;
constexpr double kDistanceDamping[] = {1.0, 0.95, 0.9};
constexpr double kNeverSo = 1.25;
constexpr double kBeforeBut = 0.5;
constexpr double kAfterBut = 1.5;
constexpr double kExclamation = 0.292;
constexpr double kQuestion = 0.18;
constexpr double kManyQuestions = 0.96;
constexpr double kNormalisation = 15.0;
constexpr size_t kReach = 3;  // words before that change a word

using WordSet = std::unordered_set<std::string_view>;

const WordSet& Negations() {
  static const WordSet words = {
      "aint",    "arent",   "cannot",  "cant",     "couldnt", "darent",
      "didnt",   "doesnt",  "dont",    "hadnt",    "hasnt",   "havent",
      "isnt",    "mightnt", "mustnt",  "neither",  "neednt",  "never",
      "none",    "nope",    "nor",     "not",      "nothing", "nowhere",
      "oughtnt", "shant",   "without", "shouldnt", "uhuh",    "uh-uh",
      "wasnt",   "werent",  "wont",    "wouldnt",  "rarely",  "seldom",
      "despite"};
  return words;
}

const WordSet& Boosters() {
  static const WordSet words = {
      "absolutely",   "amazingly",     "awfully",      "completely",
      "considerable", "considerably",  "decidedly",    "deeply",
      "enormous",     "enormously",    "entirely",     "especially",
      "exceptional",  "exceptionally", "extreme",      "extremely",
      "fabulously",   "fully",         "greatly",      "hella",
      "highly",       "hugely",        "incredible",   "incredibly",
      "intensely",    "major",         "majorly",      "more",
      "most",         "particularly",  "purely",       "quite",
      "really",       "remarkably",    "so",           "substantially",
      "thoroughly",   "total",         "totally",      "tremendous",
      "tremendously", "uber",          "unbelievably", "unusually",
      "utter",        "utterly",       "very"};
  return words;
}

const WordSet& Dampeners() {
  static const WordSet words = {
      "almost",     "barely",       "hardly",   "kinda",    "kindof",
      "kind-of",    "less",         "little",   "marginal", "marginally",
      "occasional", "occasionally", "partly",   "scarce",   "scarcely",
      "slight",     "slightly",     "somewhat", "sorta",    "sortof",
      "sort-of"};
  return words;
}

bool IsSpace(char c) {
  return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' ||
         c == '\v';
}

bool IsPunctuation(char c) {
  return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') ||
         (c >= '[' && c <= '`') || (c >= '{' && c <= '~');
}

char Lower(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

struct Word {
  std::string lower;
  bool caps = false;  // has capitals and no small letters
};

Word MakeWord(std::string_view text) {
  Word word;
  bool capital = false;
  bool small = false;
  for (const char c : text) {
    capital = capital || (c >= 'A' && c <= 'Z');
    small = small || (c >= 'a' && c <= 'z');
    word.lower.push_back(Lower(c));
  }
  word.caps = capital && !small;
  return word;
}

// Words lose punctuation at both ends, unless only two characters or fewer
// would stay: that is an emoticon such as ":D".
std::vector<Word> Words(std::string_view text) {
  std::vector<Word> words;
  size_t at = 0;
  while (at < text.size()) {
    if (IsSpace(text[at])) {
      ++at;
      continue;
    }
    size_t end = at;
    while (end < text.size() && !IsSpace(text[end])) {
      ++end;
    }
    std::string_view token = text.substr(at, end - at);
    std::string_view bare = token;
    while (!bare.empty() && IsPunctuation(bare.front())) {
      bare.remove_prefix(1);
    }
    while (!bare.empty() && IsPunctuation(bare.back())) {
      bare.remove_suffix(1);
    }
    words.push_back(MakeWord(bare.size() <= 2 ? token : bare));
    at = end;
  }
  return words;
}

bool IsNegation(const std::string& word) {
  return Negations().contains(word) || word.find("n't") != std::string::npos;
}

// +kBoost, -kBoost or 0.
double Intensity(const std::string& word) {
  if (Boosters().contains(word)) {
    return kBoost;
  }
  return Dampeners().contains(word) ? -kBoost : 0.0;
}

using Valences = std::unordered_map<std::string, double>;

// The valences of one text's words.
class TextScorer {
 public:
  TextScorer(const Valences& lexicon, std::span<const Word> words)
      : lexicon_(lexicon), words_(words) {
    const auto caps = std::ranges::count_if(
        words, [](const Word& word) { return word.caps; });
    mixed_case_ = caps > 0 && static_cast<size_t>(caps) < words.size();
  }

  double Valence(size_t i) const {
    const auto it = lexicon_.find(words_[i].lower);
    if (it == lexicon_.end() || Intensity(words_[i].lower) != 0.0 ||
        IsHedge(i)) {
      return 0.0;
    }
    // "no" before a sentiment word negates that word and says nothing itself.
    if (words_[i].lower == "no" && i + 1 < words_.size() &&
        lexicon_.contains(words_[i + 1].lower)) {
      return 0.0;
    }
    double valence = it->second;
    if (words_[i].caps && mixed_case_) {
      valence += std::copysign(kCaps, valence);
    }
    for (size_t distance = 1; distance <= std::min(kReach, i); ++distance) {
      valence = Modify(valence, i, distance);
    }
    if (i >= 1 && words_[i - 1].lower == "least" &&
        !(i >= 2 &&
          (words_[i - 2].lower == "at" || words_[i - 2].lower == "very"))) {
      valence *= kNegation;
    }
    return valence;
  }

 private:
  const std::string& Lower(size_t i) const { return words_[i].lower; }

  // "kind of", "sort of".
  bool IsHedge(size_t i) const {
    return i + 1 < words_.size() && Lower(i + 1) == "of" &&
           (Lower(i) == "kind" || Lower(i) == "sort");
  }

  // What the word `distance` before word i does to its valence.
  double Modify(double valence, size_t i, size_t distance) const {
    const size_t j = i - distance;
    const std::string& word = Lower(j);
    double intensity = IsHedge(j) ? -kBoost : Intensity(word);
    if (intensity != 0.0) {
      if (words_[j].caps && mixed_case_) {
        intensity += std::copysign(kCaps, intensity);
      }
      valence += std::copysign(1.0, valence) * intensity *
                 kDistanceDamping[distance - 1];
    }
    if (word == "never" && distance >= 2 &&
        (Lower(j + 1) == "so" || Lower(j + 1) == "this")) {
      return valence * kNeverSo;
    }
    if (word == "without" && Lower(j + 1) == "doubt") {
      return valence;
    }
    return IsNegation(word) || word == "no" ? valence * kNegation : valence;
  }

  const Valences& lexicon_;
  std::span<const Word> words_;
  bool mixed_case_ = false;
};

double PunctuationEmphasis(std::string_view text) {
  const auto exclamations = std::ranges::count(text, '!');
  const auto questions = std::ranges::count(text, '?');
  double emphasis =
      kExclamation * static_cast<double>(std::min<int64_t>(exclamations, 4));
  if (questions > 3) {
    emphasis += kManyQuestions;
  } else if (questions > 1) {
    emphasis += kQuestion * static_cast<double>(questions);
  }
  return emphasis;
}

}  // namespace

absl::StatusOr<LexiconScorer> LexiconScorer::FromText(
    std::string_view lexicon) {
  LexiconScorer scorer;
  scorer.hash_ = Sha256Hex(lexicon);
  for (int64_t number = 1; !lexicon.empty(); ++number) {
    const size_t end = lexicon.find('\n');
    const std::string_view line = lexicon.substr(0, end);
    lexicon.remove_prefix(end == std::string_view::npos ? lexicon.size()
                                                        : end + 1);
    if (line.empty() || line.starts_with('#')) {
      continue;
    }
    const size_t tab = line.find('\t');
    double valence = 0.0;
    const char* const line_end = line.data() + line.size();
    const bool valid = tab != std::string_view::npos && tab > 0 && [&] {
      const auto [rest, error] =
          std::from_chars(line.data() + tab + 1, line_end, valence);
      return error == std::errc() && rest == line_end;
    }();
    if (!valid || !(valence >= -4.0 && valence <= 4.0)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "line ", number,
          ": expected a word, a tab and a valence of -4 to 4, found '",
          std::string(line.substr(0, 80)), "'"));
    }
    scorer.valence_[MakeWord(line.substr(0, tab)).lower] = valence;
  }
  if (scorer.valence_.empty()) {
    return absl::InvalidArgumentError("expected a lexicon, found no entries");
  }
  return scorer;
}

absl::StatusOr<LexiconScorer> LexiconScorer::FromFile(Fs& fs,
                                                      const std::string& path) {
  COX_ASSIGN_OR_RETURN(const std::string text, fs.ReadAll(path));
  absl::StatusOr<LexiconScorer> scorer = FromText(text);
  if (!scorer.ok()) {
    return Annotate(scorer.status(), path);
  }
  return scorer;
}

double LexiconScorer::Score(std::string_view text) const {
  const std::vector<Word> words = Words(text);
  const TextScorer scorer(valence_, words);
  const auto but = std::ranges::find_if(
      words, [](const Word& word) { return word.lower == "but"; });
  const auto but_at = static_cast<size_t>(but - words.begin());
  double sum = 0.0;
  for (size_t i = 0; i < words.size(); ++i) {
    double weight = 1.0;
    if (but != words.end() && i != but_at) {
      weight = i < but_at ? kBeforeBut : kAfterBut;
    }
    sum += weight * scorer.Valence(i);
  }
  if (sum == 0.0) {
    return 0.0;
  }
  sum += std::copysign(PunctuationEmphasis(text), sum);
  return sum / std::sqrt(sum * sum + kNormalisation);
}

}  // namespace cox
