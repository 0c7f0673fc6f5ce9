// Reads PTX.
#include <algorithm>
#include <cctype>
#include <cstdlib>

#include "kernel.h"

namespace ptx {
namespace {

bool starts_with(const std::string& text, const char* prefix) { return text.rfind(prefix, 0) == 0; }

std::string trimmed(const std::string& text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string::npos) return "";
  return text.substr(begin, text.find_last_not_of(" \t\r\n") + 1 - begin);
}

std::vector<std::string> words_of(const std::string& text) {
  std::vector<std::string> words;
  std::string word;
  for (const char c : text + ' ') {
    if (!std::isspace(static_cast<unsigned char>(c)) && c != ',') {
      word += c;
    } else if (!word.empty()) {
      words.push_back(word);
      word.clear();
    }
  }
  return words;
}

// Cuts a module into statements: directives, labels, braces of scopes, instructions.
class Statements {
 public:
  explicit Statements(const std::string& text) : text_(text) {}

  bool next(std::string& statement) {
    while (skip_space()) {
      const size_t end = end_of_statement();
      statement = trimmed(text_.substr(at_, end - at_));
      at_ = end;
      if (!statement.empty() && statement.back() == ';') statement.pop_back();
      if (!statement.empty()) return !starts_with(statement, ".section");  // for debuggers
    }
    return false;
  }

 private:
  bool skip_space() {
    while (at_ < text_.size()) {
      if (text_.compare(at_, 2, "//") == 0)
        at_ = std::min(text_.find('\n', at_), text_.size());
      else if (std::isspace(static_cast<unsigned char>(text_[at_])))
        ++at_;
      else
        return true;
    }
    return false;
  }
  bool is_at(const char* word) const {
    return text_.compare(at_, std::string(word).size(), word) == 0;
  }
  size_t end_of_statement() const {
    const auto past = [&](char c) { return std::min(text_.find(c, at_), text_.size() - 1) + 1; };
    if (is_at("{") || is_at("}")) return at_ + 1;
    if (is_at("$")) return past(':');
    if (is_at(".visible") || is_at(".weak") || is_at(".entry")) return past(')');
    if (is_at(".reg") || is_at(".shared") || is_at(".pragma")) return past(';');
    return is_at(".") ? past('\n') : past(';');
  }

  const std::string& text_;
  size_t at_ = 0;
};

class KernelParser {
 public:
  KernelParser(const std::string& header, std::shared_ptr<const std::map<int, std::string>> files)
      : kernel_(std::make_unique<Kernel>()) {
    kernel_->files = std::move(files);
    // .visible .entry name( .param .align 8 .b8 parameter[32760] )
    const size_t name = header.find(".entry") + 7, open = header.find('(');
    kernel_->name = trimmed(header.substr(name, open - name));
    kernel_->shared_bytes = 16;  // no variable is at address 0
    for (const char* special : {"%tid.x", "%ctaid.x", "%nctaid.x"})
      scopes_.back()[special] = kernel_->registers++;
    const std::vector<std::string> words = words_of(header.substr(open + 1));
    const size_t bracket = words.size() > 4 ? words[4].find('[') : std::string::npos;
    if (bracket == std::string::npos || words[0] != ".param" || words[3] != ".b8" ||
        words.size() > 6)
      throw Fault(kernel_->name + ": a kernel takes one struct");
    kernel_->parameter.resize(std::strtoull(words[4].c_str() + bracket + 1, nullptr, 10));
    addresses_[words[4].substr(0, bracket)] = reinterpret_cast<uint64_t>(kernel_->parameter.data());
  }

  // False at the kernel's end.
  bool take(const std::string& statement) {
    if (statement == "{") {
      scopes_.emplace_back();
    } else if (statement == "}") {
      scopes_.pop_back();
      return scopes_.size() > 1;
    } else if (statement[0] == '.') {
      take_directive(words_of(statement));
    } else if (statement[0] == '$') {
      labels_[statement.substr(0, statement.size() - 1)] = int(kernel_->code.size());
    } else {
      take_instruction(statement);
    }
    return true;
  }

  std::unique_ptr<Kernel> finish() {
    for (auto& [place, label] : jumps_) {
      Instruction& jump = kernel_->code[size_t(place)];
      if (labels_.count(label) == 0) throw Fault(jump, "no such label");
      jump.target = labels_[label];
    }
    find_order();
    return std::move(kernel_);
  }

 private:
  void take_directive(const std::vector<std::string>& words) {
    if (words[0] == ".loc") {
      file_ = std::atoi(words[1].c_str());
      line_ = std::atoi(words[2].c_str());
    } else if (words[0] == ".reg") {
      for (size_t i = 2; i < words.size(); ++i) declare_registers(words[i]);
    } else if (words[0] == ".shared") {  // .shared .align 16 .b8 name[64]
      declare_shared(std::strtoull(words[2].c_str(), nullptr, 10),
                     std::strtoull(words[3].c_str() + 2, nullptr, 10) / 8, words[4]);
    } else if (words[0] == ".maxntid") {
      kernel_->most_threads = unsigned(std::atoi(words[1].c_str()));
    } else if (words[0] != ".pragma" && words[0] != ".minnctapersm") {
      throw Fault(kernel_->name + ": unknown directive " + words[0]);
    }
  }

  // "%p<7>" is %p0 to %p6.
  void declare_registers(const std::string& name) {
    const size_t bracket = name.find('<');
    if (bracket == std::string::npos) {
      scopes_.back()[name] = kernel_->registers++;
      return;
    }
    const int count = std::atoi(name.c_str() + bracket + 1);
    for (int i = 0; i < count; ++i)
      scopes_.back()[name.substr(0, bracket) + std::to_string(i)] = kernel_->registers++;
  }

  void declare_shared(size_t align, size_t element_bytes, const std::string& name) {
    const size_t bracket = name.find('[');
    const size_t count =
        bracket == std::string::npos ? 1 : std::strtoull(name.c_str() + bracket + 1, nullptr, 10);
    size_t& end = kernel_->shared_bytes;
    end = (end + align - 1) / align * align;
    addresses_[name.substr(0, bracket)] = end;
    end += count * element_bytes;
  }

  void take_instruction(const std::string& statement) {
    Instruction instruction{};
    instruction.kernel = kernel_.get();
    instruction.text = statement;
    instruction.file = file_;
    instruction.line = line_;
    instruction.target = -1;
    instruction.guard = -1;
    std::string rest = statement;
    if (rest[0] == '@') {
      instruction.guard_is_negated = rest[1] == '!';
      const size_t begin = instruction.guard_is_negated ? 2 : 1, end = rest.find_first_of(" \t");
      instruction.guard = register_of(rest.substr(begin, end - begin), instruction);
      rest = trimmed(rest.substr(end));
    }
    const size_t end = std::min(rest.find_first_of(" \t"), rest.size());
    std::string opcode = rest.substr(0, end);
    rest = trimmed(rest.substr(end));
    if (opcode == "bra" || opcode == "bra.uni") {
      instruction.control = Control::kBranch;
      jumps_.push_back({int(kernel_->code.size()), rest});
    } else if (opcode == "ret") {
      instruction.control = Control::kReturn;
    } else {
      take_operands(rest, instruction);
      if (starts_with(opcode, "mov.") && rest.find('{') != std::string::npos)
        opcode = (rest[0] == '{' ? "unpack" : "pack") + opcode.substr(3);
      instruction.control = control_of(opcode);
      instruction.operation = find_operation(opcode);
      if (instruction.operation == nullptr) throw Fault(instruction, "unknown instruction");
    }
    kernel_->code.push_back(std::move(instruction));
  }

  static Control control_of(const std::string& opcode) {
    if (starts_with(opcode, "bar.warp") || starts_with(opcode, "shfl.sync") ||
        starts_with(opcode, "redux.sync") || starts_with(opcode, "vote.sync"))
      return Control::kWarpSync;
    return starts_with(opcode, "bar.") ? Control::kBlockBarrier : Control::kNext;
  }

  // %f1 and %f2|%p1 and [%rd1+8] and {%f1, %f2} and 0f3F800000, with commas between.
  void take_operands(std::string text, Instruction& instruction) {
    for (char& c : text)
      if (c == '{' || c == '}' || c == '|') c = ' ';
    for (const std::string& word : words_of(text)) {
      if (word[0] != '[') {
        instruction.operands.push_back({register_of(word, instruction)});
        continue;
      }
      const size_t plus = word.find('+');
      const std::string base = word.substr(1, std::min(plus, word.size() - 1) - 1);
      const int64_t offset =
          plus == std::string::npos ? 0 : std::strtoll(word.c_str() + plus + 1, nullptr, 10);
      instruction.operands.push_back({register_of(base, instruction), offset});
    }
  }

  int register_of(const std::string& name, const Instruction& instruction) {
    for (size_t i = scopes_.size(); i-- > 0;) {
      const auto found = scopes_[i].find(name);
      if (found != scopes_[i].end()) return found->second;
    }
    const auto variable = addresses_.find(name);
    if (variable != addresses_.end()) return constant(variable->second);
    const char* digits = name.c_str();
    if (name[0] == '0' && (name[1] == 'f' || name[1] == 'd'))  // the bits of a float
      return constant(std::strtoull(digits + 2, nullptr, 16));
    char* end = nullptr;
    const uint64_t bits =
        name[0] == '-' ? uint64_t(std::strtoll(digits, &end, 0)) : std::strtoull(digits, &end, 0);
    if (end == digits || (*end != '\0' && *end != 'U'))
      throw Fault(instruction, "unknown operand " + name);
    return constant(bits);
  }

  int constant(uint64_t bits) {
    const auto [place, is_new] = constants_.insert({bits, kernel_->registers});
    if (is_new) kernel_->constants.push_back({kernel_->registers++, bits});
    return place->second;
  }

  // Reverse postorder of a depth-first walk.
  void find_order() {
    std::vector<Instruction>& code = kernel_->code;
    std::vector<std::pair<int, int>> path{{0, 0}};  // instruction, successors visited
    std::vector<bool> seen(code.size());
    int order = int(code.size());
    seen.at(0) = true;
    while (!path.empty()) {
      auto& [place, visited] = path.back();
      Instruction& instruction = code[size_t(place)];
      const bool always = instruction.guard < 0;
      const bool jumps = instruction.control == Control::kBranch;
      const bool falls = !(always && (jumps || instruction.control == Control::kReturn));
      const int step = visited++;
      int next = -1;
      if (step == 0 && jumps) next = instruction.target;
      if (step == 1 && falls) next = place + 1;
      if (step > 1) {
        instruction.order = --order;
        path.pop_back();
      } else if (next >= 0) {
        if (size_t(next) >= code.size())
          throw Fault(instruction, "the kernel goes on past its end");
        if (!seen[size_t(next)]) path.push_back({next, 0});
        seen[size_t(next)] = true;
      }
    }
  }

  std::unique_ptr<Kernel> kernel_;
  std::vector<std::map<std::string, int>> scopes_{{}};
  std::map<std::string, uint64_t> addresses_;
  std::map<uint64_t, int> constants_;
  std::map<std::string, int> labels_;
  std::vector<std::pair<int, std::string>> jumps_;  // instruction, label
  int file_ = 0, line_ = 0;
};

}  // namespace

std::string describe(const Instruction& instruction) {
  const auto& files = *instruction.kernel->files;
  const auto file = files.find(instruction.file);
  std::string path = file == files.end() ? "?" : file->second;
  path = path.substr(path.rfind('/') + 1);
  return instruction.kernel->name + ", " + path + ":" + std::to_string(instruction.line) + ", `" +
         instruction.text + "`";
}

Fault::Fault(const Instruction& instruction, const std::string& what)
    : Fault(what + ": " + describe(instruction)) {}

std::vector<std::unique_ptr<Kernel>> parse(const std::string& text) {
  auto files = std::make_shared<std::map<int, std::string>>();
  const std::string directive = ".file\t";  // \t1 "path"; they follow the kernels
  for (size_t at = text.find(directive); at != std::string::npos; at = text.find(directive, at)) {
    at += directive.size();
    const size_t begin = text.find('"', at) + 1;
    (*files)[std::atoi(text.c_str() + at)] = text.substr(begin, text.find('"', begin) - begin);
  }
  std::vector<std::unique_ptr<Kernel>> kernels;
  std::unique_ptr<KernelParser> parser;
  std::vector<std::string> shared_variables;  // of more than one kernel
  Statements statements(text);
  for (std::string statement; statements.next(statement);) {
    if (statement.find(".entry") != std::string::npos) {
      parser = std::make_unique<KernelParser>(statement, files);
      for (const std::string& variable : shared_variables) parser->take(variable);
    } else if (parser == nullptr) {
      if (starts_with(statement, ".shared")) shared_variables.push_back(statement);
    } else if (!parser->take(statement)) {
      kernels.push_back(parser->finish());
      parser.reset();
    }
  }
  return kernels;
}

}  // namespace ptx
