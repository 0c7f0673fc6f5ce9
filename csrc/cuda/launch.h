// The argument of one launch. It is passed by value as a kernel parameter, together with the list
// of tensors if that fits; a longer list is in device memory.
//
// Nothing here needs a GPU: the tests run launches on the host.
#pragma once

#include "../moments.h"
#include "../rules.h"
#include "../tensor_lists.h"
#include "gradient_scaling.h"

namespace friction::cuda {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int64_t kMostChunks = int64_t{UINT32_MAX} - 1;  // that a launch can number
constexpr int64_t kParameterBytes = 32764;  // limit of kernel parameters since CUDA 12.1

// A tensor, as small as possible, because every step sends all of them.
template <int kOperands>
struct Entry {
  void* data[kOperands];
  uint32_t first_chunk;      // number of chunks in the tensors before this one
  uint16_t last_count : 14;  // elements of its last chunk; 0 if it has none
  uint16_t aligned : 1;      // every operand is contiguous, from a multiple of 16 bytes on
  uint16_t takes : 1;        // see TensorEntry
  uint16_t group_step;       // index of its GroupStep
};

// How a tensor's operands are stored, for kernels with dynamic dtypes.
struct Types {
  DType operand[kMaxOperands];  // the rule's operands, then the master
  bool master;                  // the parameter has one
  uint8_t quantized : 1;        // any operand is quantized
  uint8_t stochastic : 1;       // rounding of the parameter
};
static_assert(sizeof(Types) == 8);

// What only some launches need: the rows for a projection, the step counter for a captured step,
// the layout of a non-contiguous tensor, the master or the random-number index of a 16-bit
// parameter. Kept in device memory and sent when it changes.
struct Extra {
  float* step;         // counts the tensor's steps on the device; null: the host counts
  int64_t layout;      // offset of its layout in Header::layouts; kContiguous: none
  int64_t rows;        // of a matrix that may be projected; 0: never
  int64_t row_length;  // elements
  int64_t first_row;   // number of rows in the tensors before this one
  void* master;
  GlobalIndex global;  // for stochastic rounding, like the next
  int64_t parameter;
};
constexpr int64_t kContiguous = -1;

// A group's settings at one step, for tensors of the same types. Each is a number, or the address
// of one in device memory, which a captured step reads anew at each replay.
template <class Rule>
struct GroupStep {
  static constexpr int kSettings = sizeof(typename Rule::Settings) / sizeof(double);
  union Setting {
    double number;
    const float* float32;
    const double* float64;
  };
  Setting settings[kSettings];
  uint32_t is_float32, is_float64;  // bit masks of the settings that are addresses
  double step;
  Types types;

  FRICTION_INLINE double resolve(int setting) const {
    if (is_float32 >> setting & 1u) return static_cast<double>(*settings[setting].float32);
    if (is_float64 >> setting & 1u) return *settings[setting].float64;
    return settings[setting].number;
  }
};

// The sums over a row: what the test of a projection needs (RowSums), and parameter . direction.
struct ProjectionSums : RowSums {
  double param_direction = 0;

  ProjectionSums() = default;
  FRICTION_INLINE ProjectionSums(const RowSums& row, double param_direction)
      : RowSums(row), param_direction(param_direction) {}

  FRICTION_INLINE ProjectionSums& operator+=(const ProjectionSums& other) {
    RowSums::operator+=(other);
    param_direction += other.param_direction;
    return *this;
  }
};

// Bytes of one operand that a warp of a projection's first launch keeps in shared memory.
constexpr int kStageBytes = 1024;

// An upper bound on the overlapping (row, stage) pairs, each of which has its sums.
inline int64_t sums_slots(int64_t rows, int64_t chunks, size_t bytes_per_element) {
  return rows + chunks * (kChunk * int64_t(bytes_per_element) / kStageBytes);
}

// A tensor's rows are decided for in up to this many groups.
constexpr int kRowGroups = 16;
constexpr int kDecideThreads = 256;

struct RowGroupSums {
  ProjectionSums sums;
  bool rows_pass;
};

enum class Projected : uint8_t { kNot, kByRows, kAsOneRow };

// What a projection's launches pass to each other, in device memory.
struct Projection {
  ProjectionSums* sums;   // for each row and stage
  double* coefficients;   // [rows]: c in u_row - c p_row
  RowGroupSums* groups;   // [tensors, kRowGroups]
  double* as_one_row;     // [tensors]: c if the tensor is projected as one row
  Projected* projected;   // [tensors]
  uint32_t* blocks_done;  // 0 between launches
};

struct NoProjection {};

// An operation on lists of tensors, each with as many as the launch's count, one list after
// another.
struct ListOperation {
  int count;  // of lists
  // The Gram matrix:
  int run;                      // consecutive chunks whose products are summed first
  int64_t segments;             // of runs
  const int64_t* segment_ends;  // [segments]; null if there is one
  double* of_run;               // [pairs, runs]
  double* products;             // [segments, count, count]
  // The combination, which goes to one more list:
  double weights[kMostLists];
  const double* weights_there;  // those to use instead, in device memory; null: none
};

struct NoListOperation {};

struct SingleOperand;  // see lists.h

template <class Rule>
struct Header {
  int64_t count;  // tensors
  int64_t chunks;
  const Extra* extras;     // [tensors]; null if no tensor needs one
  const int64_t* layouts;  // each: dims, sizes [dims], strides [operands + 1, dims] (in elements)
  Moments* statistics;     // [chunks]: moments of the rule's statistic
  uint32_t* blocks_done;   // 0 between launches; null unless the last block has work to do
  std::conditional_t<Rule::kProjects, Projection, NoProjection> projection;
  std::conditional_t<std::is_same_v<Rule, SingleOperand>, ListOperation, NoListOperation> lists;
  GradientScaling scaling;
  const Entry<Rule::kOperands>* stored_entries;  // null: those in `room`
  const GroupStep<Rule>* stored_group_steps;     // likewise
  int64_t group_steps_begin;                     // their offset in `room`
};

template <class RuleType>
struct Launch : Header<RuleType> {
  using Rule = RuleType;
  using EntryType = Entry<Rule::kOperands>;
  static constexpr int64_t kRoom =
      (kParameterBytes - static_cast<int64_t>(sizeof(Header<Rule>))) / 8 * 8;
  static constexpr int64_t kMostEntries =  // with the one GroupStep that most launches have
      (kRoom - static_cast<int64_t>(sizeof(GroupStep<Rule>))) /
      static_cast<int64_t>(sizeof(EntryType));

  alignas(8) char room[kRoom];  // entries, then group steps, if they fit

  FRICTION_INLINE const EntryType* entries() const {
    return this->stored_entries != nullptr ? this->stored_entries
                                           : reinterpret_cast<const EntryType*>(room);
  }
  FRICTION_INLINE const GroupStep<Rule>& group_step(int64_t tensor) const {
    const auto* group_steps =
        this->stored_group_steps != nullptr
            ? this->stored_group_steps
            : reinterpret_cast<const GroupStep<Rule>*>(room + this->group_steps_begin);
    return group_steps[entries()[tensor].group_step];
  }
};

// The elements [begin, begin + count), in element order, of a tensor of `numel` elements.
template <int kOperands>
struct Part {
  int64_t tensor = 0, begin = 0;
  int count = 0;
  bool aligned = false, takes = false;  // as in Entry
  int64_t numel = 0;
  void* data[kOperands] = {};  // where the tensor's operands begin
  void* kept = nullptr;        // where the gradient that a rule keeps goes; null: nowhere

  // Where an operand is stored.
  template <class Rule>
  FRICTION_INLINE void* destination(int operand) const {
    return operand == kept_gradient<Rule>() ? kept : data[operand];
  }
  // The offset of an element there, among those of all operands.
  template <class Rule, int kOperand, int kCount>
  FRICTION_INLINE int64_t destination_offset(const int64_t (&offsets)[kCount]) const {
    return kOperand == kept_gradient<Rule>() && takes ? offsets[kGradOperand] : offsets[kOperand];
  }
};

template <class Launch>
using PartOf = Part<Launch::Rule::kOperands>;

// Finds the parts of increasing chunks. What belongs to the tensor is read when a chunk enters it.
template <class Launch>
class Walk {
 public:
  FRICTION_INLINE explicit Walk(const Launch& launch) : launch_(launch) {}

  // The part that a chunk covers.
  FRICTION_INLINE const PartOf<Launch>& part_of(int64_t chunk) {
    if (chunk >= end_) enter(chunk);
    part_.begin = (chunk - first_) * kChunk;
    part_.count = chunk + 1 < end_ ? int(kChunk) : last_count_;
    return part_;
  }

  // Decides where the current part's gradient is kept: it is not written if it is taken and is what
  // the rule applied. scaled: it is not.
  FRICTION_INLINE void place_kept(bool scaled) {
    constexpr int kKept = kept_gradient<typename Launch::Rule>();
    part_.kept = !part_.takes ? part_.data[kKept] : scaled ? part_.data[kGradOperand] : nullptr;
  }

 private:
  FRICTION_INLINE void enter(int64_t chunk) {
    const auto* entries = launch_.entries();
    const int64_t tensor = tensor_of(entries, launch_.count, chunk, part_.tensor);
    const auto& entry = entries[tensor];
    first_ = entry.first_chunk;
    end_ = tensor + 1 < launch_.count ? int64_t(entries[tensor + 1].first_chunk) : launch_.chunks;
    last_count_ = entry.last_count;
    part_.tensor = tensor;
    part_.aligned = entry.aligned, part_.takes = entry.takes;
    part_.numel = (end_ - first_ - 1) * kChunk + last_count_;
    FRICTION_UNROLL
    for (int operand = 0; operand < Launch::Rule::kOperands; ++operand)
      part_.data[operand] = entry.data[operand];
  }

  const Launch& launch_;
  PartOf<Launch> part_;
  int64_t first_ = 0, end_ = 0;  // the tensor's chunks
  int last_count_ = 0;
};

// The layout of a non-contiguous tensor: dims, sizes [dims], strides [operands + 1, dims], the
// master's last. Null: contiguous.
template <class Launch>
FRICTION_INLINE const int64_t* layout_of(const Launch& launch, int64_t tensor) {
  if (launch.extras == nullptr || launch.extras[tensor].layout == kContiguous) return nullptr;
  return launch.layouts + launch.extras[tensor].layout;
}

// The offset of element `index`, in element order, in each operand.
template <int kOperands>
FRICTION_INLINE void find_offsets(const int64_t* layout, int64_t index,
                                  int64_t (&offsets)[kOperands]) {
  for (int operand = 0; operand < kOperands; ++operand)
    offsets[operand] = layout == nullptr ? index : 0;
  if (layout == nullptr) return;
  const int64_t dims = layout[0];
  const int64_t *sizes = layout + 1, *strides = sizes + dims;
  FRICTION_NO_UNROLL
  for (int64_t d = dims - 1; d >= 0; --d) {
    const int64_t next = index / sizes[d], here = index - next * sizes[d];
    FRICTION_UNROLL
    for (int operand = 0; operand < kOperands; ++operand)
      offsets[operand] += here * strides[operand * dims + d];
    index = next;
  }
}

}  // namespace friction::cuda
