#include "cuda/kernels.cuh"
#include "cuda/norm.h"
#include "cuda/fill_launch.h"
#include <cstdio>
#include <algorithm>
#include <random>
#ifdef WITH_NORM
#include "cuda/norm.cu"
#endif
using namespace friction; using namespace friction::cuda;
namespace friction { void count_launch(const char*) {} }
namespace friction::cuda { void store(const void*, size_t, void*, const Target&) {} }
static void ck(cudaError_t e, int line){ if(e!=cudaSuccess){printf("CUDA %s line %d\n",cudaGetErrorString(e),line);exit(1);} }
#define CK(x) ck(x,__LINE__)
struct Shape{int64_t rows, len;};
static std::vector<Shape> vit(){ std::vector<Shape> s{{1,768},{1,197*768},{768,768},{1,768}};
 for(int i=0;i<12;++i){ for(Shape x: {Shape{1,768},{1,768},{2304,768},{1,2304},{768,768},{1,768},{1,768},{1,768},{3072,768},{1,3072},{768,3072},{1,768}}) s.push_back(x);} 
 s.push_back({1,768});s.push_back({1,768});s.push_back({1000,768});s.push_back({1,1000}); return s; }
__global__ void fillr(float* p, int64_t n, float scale, bool pos, bool bf){ for(int64_t i=blockIdx.x*256+threadIdx.x;i<n;i+=gridDim.x*256){ uint32_t h=uint32_t(i)*2654435761u; h^=h>>15; h*=2246822519u; h^=h>>13; float x=(float(h)/4294967296.f-.5f)*scale; if(pos) x=x*x; if(bf) ((uint16_t*)p)[i]=uint16_t(__float_as_uint(x)>>16); else p[i]=x; } }
template<class F> float timeit(F&& f, int reps=15){ cudaEvent_t a,b; cudaEventCreate(&a);cudaEventCreate(&b); f(); f(); CK(cudaDeviceSynchronize()); std::vector<float> t; for(int i=0;i<reps;++i){ cudaEventRecord(a); f(); cudaEventRecord(b); cudaEventSynchronize(b); float ms; cudaEventElapsedTime(&ms,a,b); t.push_back(ms*1e3f);} std::sort(t.begin(),t.end()); CK(cudaGetLastError()); return t[t.size()/2]; }
static int64_t quant_bytes(int64_t n){ return quantized_bytes(n); }
template<class Rule, class Config> struct Case {
  std::vector<TensorEntry> tensors; Launch<Rule> launch{}; int64_t rows=0; std::vector<GroupStep<Rule>> gs;
  Case(DType pt, DType gt, const std::vector<DType>& st){
    auto shapes=vit(); int64_t chunks=0;
    for(auto s: shapes){ TensorEntry t{}; int64_t n=s.rows*s.len;
      for(int o=0;o<Rule::kOperands;++o){ DType d=o==0?pt:o==1?gt:st[o-2]; t.dtype[o]=d; int64_t bytes= d==DType::kQuantized?quant_bytes(n):n*bytes_of(d); CK(cudaMalloc(&t.data[o], (bytes+255)/256*256)); CK(cudaMemset(t.data[o],0,bytes));
        if(o<2) fillr<<<256,256>>>((float*)t.data[o],n,o==0?0.1f:0.02f,false,d==DType::kBFloat16);
        t.quantized |= d==DType::kQuantized; }
      t.numel=n; t.first_chunk=chunks; chunks+=(n+kChunk-1)/kChunk; t.scalars=0; if(s.rows>1){t.rows=s.rows;t.row_length=s.len;t.first_row=rows;rows+=s.rows;} tensors.push_back(t);} 
    launch.count=tensors.size(); launch.chunks=chunks; GroupStep<Rule> g{}; 
    double vals[16]={1e-3,0.9,0.999,1,1e-8,0.01,0,0,1,0,0,1,0,0,0.1,0.1};
    if constexpr (Rule::kOperands==3) { double v2[16]={1e-3,0.9,0,1,0,1,0,0}; for(int i=0;i<GroupStep<Rule>::kSettings;++i) g.settings[i].number=v2[i]; }
    else for(int i=0;i<GroupStep<Rule>::kSettings;++i) g.settings[i].number=vals[i];
    g.step=3; g.types=types_of(tensors[0]); gs.push_back(g);
    fill_launch(launch, entries_of<Rule::kOperands>(tensors), gs, [&](const std::vector<char>& bytes,bool){ void* d; CK(cudaMalloc(&d,bytes.size())); CK(cudaMemcpy(d,bytes.data(),bytes.size(),cudaMemcpyHostToDevice)); return (const void*)d;});
    if (Rule::kProjects || needs_extras(tensors)) { auto ex=extras_of<Rule::kOperands>(tensors); void* d; CK(cudaMalloc(&d,ex.size())); CK(cudaMemcpy(d,ex.data(),ex.size(),cudaMemcpyHostToDevice)); refer_to_extras(launch,tensors,d);
      if constexpr (Rule::kProjects) {
        CK(cudaMalloc(&launch.projection.sums, 64<<20)); CK(cudaMalloc(&launch.projection.coefficients, 8*rows)); CK(cudaMalloc(&launch.projection.projected, launch.count));
#ifndef V0
        CK(cudaMalloc(&launch.projection.groups, sizeof(RowGroupSums)*kRowGroups*launch.count)); CK(cudaMalloc(&launch.projection.as_one_row, 8*launch.count)); launch.projection.blocks_done=counter_of(d,launch.count);
#endif
      } }
  }
  template<class K> float time(K k, int threads, int64_t items){ int each=0,sms=0; cudaDeviceGetAttribute(&sms,cudaDevAttrMultiProcessorCount,0); CK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each,k,threads,0)); int64_t grid=std::min<int64_t>(items,int64_t(each)*sms); void* args[]={&launch}; return timeit([&]{ CK(cudaLaunchKernel((const void*)k,dim3(grid),dim3(threads),args,0,0)); }); }
  ~Case(){ for(auto& t:tensors) for(int o=0;o<Rule::kOperands;++o) cudaFree(t.data[o]); }
};
__global__ void inplace(float4* p, int64_t n){ for(int64_t i=blockIdx.x*256+threadIdx.x;i<n;i+=int64_t(gridDim.x)*256){ float4 a=p[i]; a.x*=1.0001f;a.y*=1.0001f;a.z*=1.0001f;a.w*=1.0001f; p[i]=a; } }
int main(){
  const DType F=DType::kFloat32,B=DType::kBFloat16,Q=DType::kQuantized;
  { float *a,*b; int64_t n=86567656; CK(cudaMalloc(&a,n*4)); CK(cudaMalloc(&b,n*4)); float t=timeit([&]{cudaMemcpyAsync(b,a,n*4,cudaMemcpyDeviceToDevice);}); printf("copy %.1f us %.2f TB/s\n",t,n*8/t/1e6); t=timeit([&]{inplace<<<132*8,256>>>((float4*)a,n/4);}); printf("in place %.1f us %.2f TB/s\n",t,n*8/t/1e6); cudaFree(a);cudaFree(b);}
#ifdef A
  { Case<FrictionAdam,Float32Config> c(F,F,{F,F,F}); float t=c.time(update_kernel<Launch<FrictionAdam>,Float32Config>,kThreads,c.launch.chunks); printf("adamw fp32 %.1f us %.2f TB/s\n",t,86.567e6*36/t/1e6);} 
#endif
#ifdef R
  { Case<Rsgdm,Float32Config> c(F,F,{F}); float t=c.time(update_kernel<Launch<Rsgdm>,Float32Config>,kThreads,c.launch.chunks); printf("rsgdm %.1f us %.2f TB/s\n",t,86.567e6*20/t/1e6);} 
#endif
#ifdef BB
  { Case<FrictionAdam,BFloat16Config> c(B,B,{F,F,B}); float t=c.time(update_kernel<Launch<FrictionAdam>,BFloat16Config>,kThreads,c.launch.chunks); printf("adamw bf16 %.1f us %.2f TB/s\n",t,86.567e6*26/t/1e6);} 
#endif
#ifdef QQ
  { Case<FrictionAdam,QuantizedConfig> c(F,F,{Q,Q,Q}); float t=c.time(update_kernel<Launch<FrictionAdam>,QuantizedConfig>,kThreads,c.launch.chunks); printf("adamw 8bit %.1f us %.2f TB/s\n",t,86.567e6*18/t/1e6);} 
#endif
#ifdef P
  { Case<FrictionAdamP,Float32Config> c(F,F,{F,F,F}); 
    float t=c.time(projection_reduce_kernel<Launch<FrictionAdamP>,Float32Config>,kThreads,c.launch.chunks);
#ifdef V0
    float d=c.time(projection_decide_kernel<Launch<FrictionAdamP>,float>,kDecideThreads,c.launch.count);
#else
    float d=c.time(projection_decide_kernel<Launch<FrictionAdamP>,float>,kDecideThreads,c.launch.count*kRowGroups);
#endif
    float u=c.time(update_kernel<Launch<FrictionAdamP>,Float32Config>,kThreads,c.launch.chunks);
    printf("adamp reduce %.1f (%.2f TB/s) decide %.1f update %.1f sum %.1f\n",t,86.567e6*20/t/1e6,d,u,t+d+u);} 
#endif
#ifdef N
  { Case<SingleOperand,Float32Config>* c=nullptr; (void)c;
    std::vector<TensorEntry> ts; int64_t chunks=0; for(auto s:vit()){ TensorEntry t{}; t.numel=s.rows*s.len; CK(cudaMalloc(&t.data[0],t.numel*4)); fillr<<<256,256>>>((float*)t.data[0],t.numel,1,false,false); t.dtype[0]=F; t.scalars=int(F); t.first_chunk=chunks; chunks+=(t.numel+kChunk-1)/kChunk; ts.push_back(t);} 
    Launch<SingleOperand> l{}; l.count=ts.size(); l.chunks=chunks; fill_launch(l, entries_of<1>(ts), {}, [&](const std::vector<char>&,bool){return (const void*)nullptr;});
    CK(cudaMalloc(&l.blocks_done,4)); CK(cudaMemset(l.blocks_done,0,4)); CK(cudaMalloc(&l.norm.squared,8));
#ifdef V0
    CK(cudaMalloc(&l.norm.of_chunk,8*chunks));
#else
    CK(cudaMalloc(&l.norm.sums,8*chunks));
#endif
    Target tg{0,nullptr}; float t=timeit([&]{ squared_norm(l,tg); }); double r; cudaMemcpy(&r,l.norm.squared,8,cudaMemcpyDeviceToHost); printf("norm %.1f us %.2f TB/s (%.6g)\n",t,86.567e6*4/t/1e6,r);} 
#endif
}
