// All native entry points. Plans and their settings are generated from the list in rules.h.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "launches.h"
#include "python/rule_plan.h"

namespace py = pybind11;
using namespace friction;

namespace {

// A group's settings, in the order of kSettings. Each is a number or a one-element tensor on a GPU,
// which the launch reads there.
template <class Rule>
std::vector<SettingValue> settings_of(const TensorReader& reader, const py::handle& group) {
  std::vector<SettingValue> settings;
  for (const py::handle value : py::reinterpret_borrow<py::sequence>(group)) {
    SettingValue& setting = settings.emplace_back();
    if (PyFloat_CheckExact(value.ptr())) {
      setting.number = PyFloat_AS_DOUBLE(value.ptr());
      continue;
    }
    TensorView view;
    if (!reader.read(value.ptr(), view) || view.device < 0 || view.numel() != 1 ||
        (view.dtype != DType::kFloat32 && view.dtype != DType::kFloat64))
      throw std::invalid_argument(
          std::string("setting '") + Rule::kSettings[settings.size() - 1] +
          "' is neither a float nor one float32 or float64 number on a GPU");
    setting.address = view.data;
    setting.dtype = view.dtype;
    setting.device = view.device;
  }
  if (settings.size() != std::size(Rule::kSettings))
    throw std::invalid_argument(std::string(Rule::kName) + " takes " +
                                std::to_string(std::size(Rule::kSettings)) + " settings");
  return settings;
}

template <class Rule>
std::vector<std::vector<SettingValue>> groups_of(const TensorReader& reader,
                                                 const py::list& settings) {
  std::vector<std::vector<SettingValue>> groups;
  for (const py::handle group : settings) groups.push_back(settings_of<Rule>(reader, group));
  return groups;
}

// The targets of squared norms: (device, tensor of one float64 on it).
std::vector<DeviceNumbers> targets_of(const TensorReader& reader, const py::list& tensors) {
  std::vector<DeviceNumbers> targets;
  for (const py::handle item : tensors) {
    const auto pair = py::reinterpret_borrow<py::tuple>(item);
    TensorView view;
    if (!reader.read(py::object(pair[1]).ptr(), view) || view.numel() != 1 ||
        view.dtype != DType::kFloat64)
      throw std::invalid_argument("a squared norm goes to one float64 number");
    targets.push_back({pair[0].cast<int>(), static_cast<double*>(view.data)});
  }
  return targets;
}

// The address of `count` float64 numbers in a tensor.
double* numbers_in(const TensorReader& reader, const py::object& tensor, int64_t count) {
  TensorView view;
  if (!reader.read(tensor.ptr(), view) || view.numel() != count || view.dtype != DType::kFloat64)
    throw std::invalid_argument(std::to_string(count) + " float64 numbers are needed");
  return static_cast<double*>(view.data);
}

// The products of all pairs of lists on each device, in a tensor that results(device) makes; or
// (list, tensor) of one that cannot be read.
py::object gram(const TensorReader& reader, const std::vector<py::list>& lists,
                const std::vector<int64_t>& segments, int64_t segment_count,
                const py::function& results, int threads, py::object allocate, py::list keep) {
  const DeviceAllocator allocator{std::move(allocate), std::move(keep)};
  std::map<int, OperandLists> of_device;
  Unread unread;
  if (!read_lists(reader, lists, segments, of_device, unread))
    return py::make_tuple(unread.list, unread.tensor);
  const int64_t numbers = segment_count * int64_t(lists.size() * lists.size());
  py::list made;
  for (const auto& [device, read] : of_device) {
    made.append(results(device));
    double* products = numbers_in(reader, made[made.size() - 1], numbers);
    if (device == kCpu)
      gram_on_cpu(read, segment_count, products, threads);
    else
      ListsOnGpu().gram(read, segment_count, products, allocator,
                        {device, reader.current_stream(device)});
  }
  return made;
}

// Writes the weighted sum of all lists but the last to that, once check(device) has let each device
// pass. Weights are numbers, or weights(device) gives a tensor of them. Returns (list, tensor) of
// one that cannot be read.
py::object combine(const TensorReader& reader, const std::vector<py::list>& lists,
                   const py::object& weights, const py::function& check, int threads,
                   py::object allocate, py::list keep) {
  const DeviceAllocator allocator{std::move(allocate), std::move(keep)};
  std::map<int, OperandLists> of_device;
  Unread unread;
  if (!read_lists(reader, lists, {}, of_device, unread))
    return py::make_tuple(unread.list, unread.tensor);
  for (const auto& [device, read] : of_device) {
    check(device);
    check_output(read);
  }
  const auto count = int64_t(lists.size()) - 1;
  for (const auto& [device, read] : of_device) {
    std::vector<double> numbers;
    const double* there = nullptr;
    py::object tensor;
    if (py::isinstance<py::list>(weights)) {
      numbers = weights.cast<std::vector<double>>();
    } else {
      tensor = weights(device);
      there = numbers_in(reader, tensor, count);
    }
    if (device != kCpu) {
      ListsOnGpu().combine(read, numbers, there, allocator,
                           {device, reader.current_stream(device)});
      continue;
    }
    if (there != nullptr) numbers.assign(there, there + count);
    combine_on_cpu(read, numbers, threads);
  }
  return py::none();
}

// The address of one number on a device; null for None.
template <class Number>
const Number* scaling_number(const TensorReader& reader, const py::handle& tensor, int device,
                             DType dtype) {
  if (tensor.is_none()) return nullptr;
  TensorView view;
  if (!reader.read(tensor.ptr(), view) || view.numel() != 1 || view.dtype != dtype ||
      view.device != device)
    throw std::invalid_argument(
        "a scaling number is one number on its device: float64 for a squared norm, else float32");
  return static_cast<const Number*>(view.data);
}

// (device, squared norm, grad_scale, found_inf, skip_nonfinite) for each GPU.
std::vector<DeviceScaling> scaling_of(const TensorReader& reader, const py::list& tuples) {
  std::vector<DeviceScaling> scaling;
  for (const py::handle item : tuples) {
    const auto fields = py::reinterpret_borrow<py::tuple>(item);
    const int device = fields[0].cast<int>();
    scaling.push_back({device,
                       {scaling_number<double>(reader, fields[1], device, DType::kFloat64),
                        scaling_number<float>(reader, fields[2], device, DType::kFloat32),
                        scaling_number<float>(reader, fields[3], device, DType::kFloat32),
                        fields[4].cast<bool>()}});
  }
  return scaling;
}

py::object problem_or_none(const Problem& problem) {
  if (problem.what == nullptr) return py::none();
  return py::make_tuple(problem.entry, problem.what);
}

// The plan in a Python object; null before it is constructed.
Plan* plan_of(PyObject* object) {
  const auto found = reinterpret_cast<py::detail::instance*>(object)->get_value_and_holder();
  return found.holder_constructed() ? &py::cast<Plan&>(py::handle(object)) : nullptr;
}

// Lets Python's garbage collector traverse what a plan refers to.
void take_part_in_collection(PyHeapTypeObject* heap_type) {
  PyTypeObject& type = heap_type->ht_type;
  type.tp_flags |= Py_TPFLAGS_HAVE_GC;
  type.tp_traverse = [](PyObject* object, visitproc visit, void* arg) -> int {
    Py_VISIT(Py_TYPE(object));
    const Plan* plan = plan_of(object);
    return plan == nullptr ? 0 : plan->traverse(visit, arg);
  };
  type.tp_clear = [](PyObject* object) -> int {
    if (Plan* plan = plan_of(object)) plan->clear();
    return 0;
  };
}

template <class Rule, class PlanType>
void bind_plan(py::module_& m, const char* name) {
  py::class_<PlanType, Plan> plan(m, name, py::custom_type_setup(&take_part_in_collection));
  plan.def(py::init([](std::shared_ptr<TensorReader> reader, py::list entries, py::object allocate,
                       py::list keep) {
             return std::make_unique<PlanType>(
                 std::move(reader), std::move(entries),
                 DeviceAllocator{std::move(allocate), std::move(keep)});
           }),
           py::arg("reader"), py::arg("entries"), py::arg("allocate"), py::arg("keep"))
      .def(
          "step",
          [](PlanType& self, const py::list& settings, int threads, const py::list& scaling) {
            return problem_or_none(self.step(groups_of<Rule>(self.reader(), settings), threads,
                                             scaling_of(self.reader(), scaling)));
          },
          py::arg("settings"), py::arg("threads"), py::arg("scaling") = py::list())
      .def(
          "squared_norm",
          [](PlanType& self, const std::vector<bool>& counted, const py::list& targets,
             int threads) {
            return problem_or_none(
                self.squared_norm(counted, targets_of(self.reader(), targets), threads));
          },
          py::arg("counted"), py::arg("targets"), py::arg("threads"));
  if constexpr (Rule::kHasStatistic)
    plan.def(
        "statistics",
        [](PlanType& self, const py::list& settings, int threads, const py::list& scaling) {
          std::vector<GroupStatistic> statistics;
          const Problem problem = self.statistics(groups_of<Rule>(self.reader(), settings), threads,
                                                  scaling_of(self.reader(), scaling), statistics);
          py::list of_groups;
          for (const auto& [count, moments] : statistics)
            of_groups.append(py::make_tuple(count, moments.sum, moments.square_sum));
          return py::make_tuple(of_groups, problem_or_none(problem));
        },
        py::arg("settings"), py::arg("threads"), py::arg("scaling") = py::list());
  py::list names;
  for (const char* setting : Rule::kSettings) names.append(setting);
  plan.attr("settings") = py::tuple(names);
}

template <class... Rule>
void bind_rules(py::module_& m, RuleList<Rule...>) {
  (bind_plan<Rule, RulePlan<Rule>>(m, Rule::kName), ...);
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  // Initialized on import, before the process can fork.
  kernels();
  thread_source();
  m.doc() = "Native kernels of friction_kernels; its classes are the public interface.";
  m.attr("compiler") = FRICTION_COMPILER;
  m.attr("cuda_architectures") = py::tuple(py::cast(cuda::architectures()));
  m.def("cuda_unavailable_reason", &cuda::unavailable_reason, py::arg("device"));
  m.def("probe_cuda", &cuda::probe, py::arg("device"));
  m.def("instruction_sets", &instruction_sets);
  m.def("instruction_set", [] { return std::string(kernels().instruction_set); });
  m.def("use_instruction_set", &use_instruction_set, py::arg("name"));
  m.def("thread_source", &thread_source);
  m.def("launch_counts", &launch_counts);
  py::class_<TensorReader, std::shared_ptr<TensorReader>>(m, "TensorReader")
      .def(py::init<py::type, py::type>(), py::arg("tensor"), py::arg("parameter"))
      .def("allow", &TensorReader::allow, py::arg("subclass"))
      .def("unwrap", &TensorReader::unwrap, py::arg("dtensor"));
  m.def("gram", &gram, py::arg("reader"), py::arg("lists"), py::arg("segments"),
        py::arg("segment_count"), py::arg("results"), py::arg("threads"), py::arg("allocate"),
        py::arg("keep"));
  m.def("combine", &combine, py::arg("reader"), py::arg("lists"), py::arg("weights"),
        py::arg("check"), py::arg("threads"), py::arg("allocate"), py::arg("keep"));
  py::class_<Plan>(m, "Plan").def_property_readonly("updated", &Plan::updated);
  py::class_<Reading>(m, "Reading")
      .def(py::init<Plan&, const py::dict&, const py::list&>(), py::arg("plan"), py::arg("state"),
           py::arg("param_groups"), py::keep_alive<1, 2>())
      .def("__enter__", [](const Reading& self) { return problem_or_none(self.problem()); })
      .def("__exit__", [](Reading& self, const py::args&) { self.end(); });
  bind_rules(m, Rules());
}
